//! The reference model told right from wrong in small histories.

use super::*;

fn change(sectors: Range<usize>, stamp: Stamp) -> Change {
    Change { sectors, stamp, resize: None, contents: None, issued: 0, done: None }
}

fn image(stamps: &[Stamp]) -> Image {
    Image { size: stamps.len(), stamps: stamps.to_vec() }
}

/// A term of two lanes of two sectors: 1 in the first and then 2 in the second complete, 3 in
/// the first is under way.
fn model() -> Model {
    let mut model = Model::new(4, 4);
    model.begin(1, image(&[0; 4]), 2).unwrap();
    for (lane, sectors, stamp) in [(0, 0..2, 1), (1, 2..4, 2)] {
        let index = model.issue(1, lane, change(sectors, stamp));
        model.complete(1, lane, index);
    }
    model.issue(1, 0, change(0..2, 3));
    model
}

#[test]
fn model_prefixes() {
    for good in [[0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 2, 2], [1, 1, 0, 2], [3, 1, 2, 2]]
    {
        assert_eq!(model().check(1, &image(&good)), Ok(()), "{good:?}");
    }
    for bad in [[0, 0, 2, 2], [0, 1, 2, 2], [0, 0, 2, 0], [3, 3, 0, 0], [3, 1, 0, 2], [9, 1, 0, 0]]
    {
        assert!(model().check(1, &image(&bad)).is_err(), "{bad:?}");
    }
}

#[test]
fn model_flushes() {
    let mut model = model();
    let now = model.tick();
    model.flushed(1, Keeper::Store, now, None).unwrap();
    assert_eq!(model.check(1, &image(&[1, 1, 2, 2])), Ok(()));
    assert_eq!(model.check(1, &image(&[1, 3, 2, 2])), Ok(()));
    assert!(model.check(1, &image(&[1, 1, 0, 0])).is_err());
    assert!(model.begin(2, image(&[1, 1, 0, 2]), 1).is_err());
    model.begin(2, image(&[1, 1, 2, 2]), 1).unwrap();
    model.complete(1, 0, 1);
    let now = model.tick();
    assert!(model.flushed(1, Keeper::Store, now, None).is_err(), "its last change was not found");
    assert!(model.begin(2, image(&[1, 1, 2, 2]), 1).is_err(), "two owners");
}

#[test]
fn model_resumes() {
    assert!(model().resume(1, 2, &image(&[1, 1, 0, 0])).is_err(), "2 had completed");
    let resumed = || {
        let mut model = model();
        assert!(model.is_newest(1));
        model.resume(1, 2, &image(&[3, 1, 2, 2])).unwrap();
        assert!(model.is_newest(2));
        model
    };
    for good in [[0, 0, 0, 0], [1, 1, 2, 2], [3, 1, 2, 2]] {
        let mut model = resumed();
        assert_eq!(model.check(2, &image(&good)), Ok(()), "{good:?}");
    }
    assert!(resumed().check(2, &image(&[3, 3, 2, 2])).is_err(), "no more came of it");
}

/// As [`model`], and the journal acknowledges a flush of changes 1 and 2.
fn journaled() -> Model {
    let mut model = model();
    let now = model.tick();
    model.flushed(1, Keeper::Journal, now, None).unwrap();
    model
}

#[test]
fn model_journals_bind_heirs_only() {
    assert!(journaled().inherit(2, image(&[1, 1, 0, 0]), true).is_err(), "2 was flushed");
    journaled().inherit(2, image(&[1, 1, 0, 0]), false).unwrap();
    journaled().begin(2, image(&[1, 1, 0, 0]), 1).unwrap();
    let mut model = journaled();
    model.begin(2, image(&[0; 4]), 1).unwrap();
    assert!(model.has_lost(1));
    let now = model.tick();
    assert_eq!(model.flushed(1, Keeper::Journal, now, None), Ok(()), "it cannot know");
    assert!(model.flushed(1, Keeper::Store, now, None).is_err(), "the store knows better");
    let mut model = journaled();
    model.begin(2, image(&[1, 1, 2, 2]), 1).unwrap();
    assert!(!model.has_lost(1));
}

#[test]
fn model_heirs_continue() {
    let continued = || {
        let mut model = journaled();
        assert_eq!(model.before(2), 1);
        model.inherit(2, image(&[3, 1, 2, 2]), true).unwrap();
        let index = model.issue(2, 1, change(3..4, 4));
        model.complete(2, 1, index);
        model
    };
    for good in [[0, 0, 0, 0], [1, 1, 0, 2], [1, 1, 2, 2], [3, 1, 2, 2], [3, 1, 2, 4]] {
        assert_eq!(continued().check(2, &image(&good)), Ok(()), "{good:?}");
    }
    for bad in [[1, 1, 2, 4], [3, 3, 2, 2]] {
        assert!(continued().check(2, &image(&bad)).is_err(), "{bad:?}");
    }
    assert!(continued().inherit(3, image(&[0, 0, 2, 2]), true).is_err());
}

#[test]
fn model_tears_have_two_readings() {
    // 2 never came, or it came and a trim of all took its second half only: the latter is
    // believed, and what follows has to fit it.
    let mut model = model();
    let trim = model.issue(1, 1, change(2..4, 0));
    model.complete(1, 1, trim);
    model.inherit(2, image(&[1, 1, 2, 0]), true).unwrap();
    let now = model.tick();
    model.flushed(2, Keeper::Store, now, None).unwrap();
    assert_eq!(model.check(2, &image(&[1, 1, 2, 0])), Ok(()));
    assert!(model.check(2, &image(&[1, 1, 2, 2])).is_err());
}

#[test]
fn model_heirs_may_be_late() {
    let mut model = journaled();
    model.begin(3, image(&[1, 1, 0, 0]), 1).unwrap();
    model.inherit(2, image(&[3, 1, 2, 2]), true).unwrap();
    let index = model.issue(2, 0, change(0..1, 4));
    model.complete(2, 0, index);
    let now = model.tick();
    assert_eq!(model.flushed(2, Keeper::Journal, now, None), Ok(()));
    assert!(model.flushed(2, Keeper::Store, now, None).is_err(), "it was superseded");
}

#[test]
fn model_stores_do_not_forget() {
    let mut model = model();
    model.check(1, &image(&[1, 1, 0, 2])).unwrap();
    model.check(1, &image(&[1, 1, 2, 2])).unwrap();
    assert!(model.check(1, &image(&[1, 1, 0, 2])).is_err(), "the store held 2");
}

#[test]
fn model_reads() {
    let mut model = model();
    let now = model.tick();
    for (got, good) in [([1, 1, 2, 2], true), ([3, 1, 2, 2], true), ([0, 1, 2, 2], false)] {
        assert_eq!(model.read(1, now, 0, &got).is_ok(), good, "{got:?}");
    }
    assert!(model.read(1, 1, 0, &[0, 1, 0, 2]).is_ok(), "as it was when the read began");
}
