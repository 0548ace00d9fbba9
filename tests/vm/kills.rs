//! The target dies under a mounted file system, its host lives: at random moments, and at the flushes
//! of a file system.

use crate::guest::{Guest, KERNELS, Pool, full, seed};
use crate::judge::{Counts, Ledger};
use crate::table::{print, row};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Median and longest, for people.
pub fn spread(values: &[u64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    match sorted.last() {
        None => "never".into(),
        Some(longest) => format!("median {} ms, longest {longest} ms", sorted[sorted.len() / 2]),
    }
}

/// Judges all that `guest` says until it is done; the milliseconds of its attaches.
fn until_done(guest: &mut Guest, ledger: &mut Ledger) -> Vec<String> {
    let mut said = Vec::new();
    while let Some(line) = guest.line() {
        if let Err(why) = ledger.hear(&line) {
            guest.fail(&why);
        }
        if line == "done" {
            guest.succeeded();
            return said;
        }
        if !line.starts_with("ack ") {
            said.push(line);
        }
    }
    guest.fail("ended early");
}

fn ready(said: &[String], volume: &str) -> Vec<u64> {
    let ms = said.iter().filter_map(|line| line.strip_prefix(&format!("ready {volume} ")));
    ms.map(|ms| ms.parse().unwrap()).collect()
}

/// Each file system on each kernel, if there is time for it; the power cuts have the other one.
#[test]
fn kill_9_under_a_mounted_file_system_loses_nothing_synced() {
    let all = [("ext4", "256M"), ("xfs", "512M")];
    let (cycles, kernels, volumes, longest) = if full() {
        (8, &KERNELS[..], &all[..], 8000)
    } else {
        (2, &KERNELS[..1], &all[1..], 2000)
    };
    let mut rng = StdRng::seed_from_u64(seed());
    let heading = ["kernel", "volume", "kills", "acks", "demanded", "lost", "device ready again"];
    let mut table = vec![heading.map(String::from).to_vec()];
    for kernel in kernels {
        let pool = Pool::new();
        let mut arguments: Vec<String> = Vec::new();
        for (name, size) in volumes {
            pool.objblk(&["create", name, "--size", size]);
            arguments.push((*name).into());
            arguments.extend((0..cycles).map(|_| rng.random_range(0..longest).to_string()));
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut guest = pool.guest(kernel, "kill-loop.sh", &arguments);
        let mut ledger = Ledger::default();
        let said = until_done(&mut guest, &mut ledger);
        for (volume, _) in volumes {
            // The first attach is of a new volume.
            let again = &ready(&said, volume)[1..];
            assert_eq!(again.len(), cycles, "{volume} was not killed each time");
            let reports = said.iter().filter(|line| **line == format!("reported {volume}"));
            assert_eq!(reports.count(), cycles);
            let Counts { acked, demanded } = ledger.of(volume);
            let again = spread(again);
            table.push(row(&[kernel, volume, &cycles, &acked, &demanded, &ledger.lost, &again]));
        }
    }
    print("kill -9 of the target under a mounted file system", &table);
}

/// The moments are given: those at which something was promised.
#[test]
fn kill_9_at_flushes_of_a_file_system_keeps_all_before_them() {
    let runs: &[(&str, &str, &str)] = match full() {
        true => &[(KERNELS[0], "ext4", "24"), (KERNELS[1], "xfs", "24")],
        false => &[(KERNELS[1], "ext4", "3")],
    };
    let mut table =
        vec![["kernel", "fs", "marks", "judged", "ready again"].map(String::from).to_vec()];
    for (kernel, fs, count) in runs {
        let pool = Pool::new();
        let size = if *fs == "xfs" { "320M" } else { "64M" };
        for name in ["record", "marks"] {
            pool.objblk(&["create", name, "--size", size]);
        }
        let mut guest = pool.guest(kernel, "flush-marks.sh", &[fs, count]);
        let said = until_done(&mut guest, &mut Ledger::default());
        let all = said.iter().find_map(|line| line.strip_prefix("of ")).unwrap();
        let judged = said.iter().filter(|line| line.starts_with("mark ")).count();
        let checked = said.iter().filter(|line| line.starts_with("ok    mount at mark ")).count();
        assert_eq!(judged.to_string(), *count, "of {all} marks");
        assert!(checked * 2 > judged, "{checked} of {judged} marks had a file system to check");
        let again = spread(&ready(&said, "marks")[1..]);
        table.push(row(&[kernel, fs, &all, &format!("{judged}, {checked} with fsck"), &again]));
    }
    print("kill -9 of the target at the flush marks of a file system", &table);
}
