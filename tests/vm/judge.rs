//! What was acknowledged, and whether a recovery has it: the other side of `ledger.py`.

use std::collections::{BTreeMap, BTreeSet};

/// Versions that a guest may have made durable without being heard: those of lines that were in its
/// console's queue when the power went.
const UNHEARD: u64 = 64;

/// What was heard of a volume.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    /// Acknowledgements.
    pub acked: u64,
    /// Keys whose version was demanded of a recovery, summed over the recoveries.
    pub demanded: u64,
}

/// The durable versions of all keys of a volume (or several).
#[derive(Default)]
pub struct Ledger {
    /// The newest version that is known to be durable.
    durable: BTreeMap<String, u64>,
    /// Keys found by the report that is under way.
    found: BTreeSet<String>,
    counts: BTreeMap<String, Counts>,
    /// Acknowledged versions that were not there, and keys that were damaged.
    pub lost: u64,
}

impl Ledger {
    /// Forgets half a report: a power cut ended it.
    pub fn new_life(&mut self) {
        self.found.clear();
    }

    /// Judges a line of a guest. Errors: what is wrong.
    pub fn hear(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["FAIL" | "broken", ..] => Err(line.to_owned()),
            ["ack", key, version] => self.acknowledge(key, version),
            ["found", key, "damaged", ..] => {
                self.lost += 1;
                Err(format!("{line}: version {} was acknowledged", self.durable(key)))
            }
            ["found", key, version] => self.find(key, version),
            ["reported", volume] => self.reported(volume),
            ["ack" | "found", ..] => Err(format!("not a line of the ledger: {line}")),
            _ => Ok(()),
        }
    }

    pub fn of(&self, volume: &str) -> Counts {
        self.counts.get(volume).copied().unwrap_or_default()
    }

    pub fn all(&self) -> Counts {
        self.counts.values().fold(Counts::default(), |sum, one| Counts {
            acked: sum.acked + one.acked,
            demanded: sum.demanded + one.demanded,
        })
    }

    fn durable(&self, key: &str) -> u64 {
        self.durable.get(key).copied().unwrap_or(0)
    }

    fn acknowledge(&mut self, key: &str, version: &str) -> Result<(), String> {
        let version = number(version)?;
        let before = self.durable(key);
        // The first one follows what was found, so that nothing is judged by a gap.
        if version != before + 1 {
            return Err(format!("{key}: version {version} is acknowledged after {before}"));
        }
        self.durable.insert(key.to_owned(), version);
        self.counts.entry(volume_of(key).to_owned()).or_default().acked += 1;
        Ok(())
    }

    fn find(&mut self, key: &str, version: &str) -> Result<(), String> {
        let version = number(version)?;
        let durable = self.durable(key);
        if version < durable {
            self.lost += durable - version;
            return Err(format!("{key}: {durable} was acknowledged, {version} is there"));
        }
        if version > durable + UNHEARD {
            return Err(format!("{key}: {version} is there, {durable} was the last one heard of"));
        }
        // What is found is in the log for good: it must never go again.
        self.durable.insert(key.to_owned(), version);
        self.found.insert(key.to_owned());
        Ok(())
    }

    fn reported(&mut self, volume: &str) -> Result<(), String> {
        let keys = self.durable.iter().filter(|(key, _)| volume_of(key) == volume);
        if let Some((key, _)) = keys.clone().find(|(key, _)| !self.found.contains(*key)) {
            return Err(format!("the report of {volume} does not mention {key}"));
        }
        let demanded = keys.filter(|(_, version)| **version > 0).count();
        self.counts.entry(volume.to_owned()).or_default().demanded += demanded as u64;
        self.found.retain(|key| volume_of(key) != volume);
        Ok(())
    }
}

/// The volume of a key.
pub fn volume_of(key: &str) -> &str {
    key.split('/').next().unwrap_or(key)
}

fn number(word: &str) -> Result<u64, String> {
    word.parse().map_err(|_| format!("'{word}' is no version"))
}

#[test]
fn the_judge_sees_what_is_lost() {
    let mut ledger = Ledger::default();
    for line in ["ack v/a 1", "ack v/a 2", "ack v/b 1", "ok all is well", "found v/a 2"] {
        ledger.hear(line).unwrap();
    }
    assert!(ledger.hear("reported v").unwrap_err().contains("v/b"), "not reported");
    ledger.hear("found v/b 1").unwrap();
    ledger.hear("reported v").unwrap();
    let Counts { acked, demanded } = ledger.all();
    assert_eq!((acked, demanded, ledger.lost), (3, 2, 0));
    for (line, lost) in [
        ("found v/a 1", 1),
        ("found v/b damaged ValueError", 2),
        ("found v/a 900", 2),
        ("ack v/a 4", 2),
        ("FAIL e2fsck", 2),
    ] {
        assert!(ledger.hear(line).is_err(), "{line}");
        assert_eq!(ledger.lost, lost, "{line}");
    }
    // Found, though never heard of: from now on it must stay.
    ledger.hear("found v/a 3").unwrap();
    assert!(ledger.hear("found v/a 2").is_err());
}
