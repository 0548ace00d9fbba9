//! Which parts of a buffer hold data: what is zero is left out, and reads as zeros all the same.

use std::ops::Range;

/// The unit in which zeros are looked for, in bytes.
pub const GRAIN: usize = 4096;

/// The runs of `buf` that are not all zeros, in whole grains (the last one may be shorter).
pub fn data_runs(buf: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (at, grain) in buf.chunks(GRAIN).enumerate() {
        if is_zero(grain) {
            continue;
        }
        let (start, end) = (at * GRAIN, at * GRAIN + grain.len());
        match runs.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

/// True where every byte is zero.
pub fn is_zero(buf: &[u8]) -> bool {
    // Sixteen at a time compile to vector instructions.
    let (words, tail) = buf.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && tail.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs() {
        assert!(data_runs(&[]).is_empty() && data_runs(&[0; 3 * GRAIN + 7]).is_empty());
        let mut buf = vec![0; 6 * GRAIN + 512];
        buf[GRAIN - 1] = 1;
        buf[3 * GRAIN] = 1;
        buf[5 * GRAIN - 1] = 1;
        assert_eq!(data_runs(&buf), [0..GRAIN, 3 * GRAIN..5 * GRAIN]);
        *buf.last_mut().unwrap() = 1;
        assert_eq!(data_runs(&buf).last(), Some(&(6 * GRAIN..6 * GRAIN + 512)));
    }

    #[test]
    fn zeros_of_every_length() {
        for len in 0..50 {
            let mut buf = vec![0; len];
            assert!(is_zero(&buf));
            for at in 0..len {
                buf[at] = 0x80;
                assert!(!is_zero(&buf), "{at} of {len}");
                buf[at] = 0;
            }
        }
    }
}
