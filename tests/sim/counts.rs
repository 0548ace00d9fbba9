//! What simulated worlds had of everything: a world without it shows nothing.

use crate::model::Keeper;

/// What is counted.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub operations: u64,
    pub requests: u64,
    pub opened: u64,
    pub fenced: u64,
    pub killed: u64,
    pub paused: u64,
    pub recoveries: u64,
    pub recoveries_journaled: u64,
    pub recovered: u64,
    pub recovered_journaled: u64,
    pub recovered_alone: u64,
    pub power_cuts: u64,
    pub inherited: u64,
    pub discarded: u64,
    pub flushes: u64,
    pub journaled: u64,
    pub audits: u64,
    pub deletes: u64,
    pub checkpoints: u64,
    pub collected: u64,
    pub snapshots: u64,
    pub snapshots_deleted: u64,
    pub rolled_back: u64,
    pub clones: u64,
    pub clones_used: u64,
    pub flattened: u64,
    pub retained: u64,
    pub views: u64,
    pub sourced: u64,
    pub fetched: u64,
    pub hydrated: u64,
    pub received: u64,
    pub resumed: u64,
    pub refused: u64,
    pub scheduled: u64,
    pub kept: u64,
    pub cloned_past: u64,
}

impl Counts {
    pub fn add(&mut self, more: &Counts) {
        for (sum, more) in self.all_mut().into_iter().zip(more.clone().all_mut()) {
            *sum.1 += *more.1;
        }
    }

    pub fn flushed(&mut self, by: Keeper) {
        self.flushes += 1;
        self.journaled += u64::from(by == Keeper::Journal);
    }

    fn all_mut(&mut self) -> [(&'static str, &mut u64); 37] {
        [
            ("operations", &mut self.operations),
            ("requests", &mut self.requests),
            ("opened", &mut self.opened),
            ("fenced", &mut self.fenced),
            ("killed", &mut self.killed),
            ("paused", &mut self.paused),
            ("recoveries begun", &mut self.recoveries),
            ("of them with a journal", &mut self.recoveries_journaled),
            ("recovered", &mut self.recovered),
            ("of them with a journal", &mut self.recovered_journaled),
            ("without the one they had", &mut self.recovered_alone),
            ("power cuts", &mut self.power_cuts),
            ("journals gone on from", &mut self.inherited),
            ("discarded", &mut self.discarded),
            ("flushes", &mut self.flushes),
            ("of them by a journal", &mut self.journaled),
            ("audits", &mut self.audits),
            ("objects deleted", &mut self.deletes),
            ("checkpoints", &mut self.checkpoints),
            ("chunks collected", &mut self.collected),
            ("snapshots", &mut self.snapshots),
            ("of them deleted", &mut self.snapshots_deleted),
            ("rolled back", &mut self.rolled_back),
            ("clones", &mut self.clones),
            ("used", &mut self.clones_used),
            ("flattened", &mut self.flattened),
            ("points of the past", &mut self.retained),
            ("of it looked at", &mut self.views),
            ("volumes with sources used", &mut self.sourced),
            ("sectors fetched", &mut self.fetched),
            ("hydrated", &mut self.hydrated),
            ("streams received", &mut self.received),
            ("of them anew", &mut self.resumed),
            ("refused", &mut self.refused),
            ("snapshots of schedules", &mut self.scheduled),
            ("kept that were to go", &mut self.kept),
            ("clones of the past", &mut self.cloned_past),
        ]
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut counts = self.clone();
        let all = counts.all_mut().map(|(name, count)| format!("{name} {count}"));
        f.write_str(&all.join(", "))
    }
}
