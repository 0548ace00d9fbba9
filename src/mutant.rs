//! Deliberate mistakes, for the control arms of tests: each stands for a way to write this
//! engine wrong, and a test has to notice every one of them (`tests/sim/mutants.rs`).
//!
//! Contract: nothing but a test calls [`with`]; without it, and in builds without debug
//! assertions always, [`on`] is false. A mistake is made by one thread only, so simulated worlds
//! run beside each other with different ones.

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A flush is acknowledged before the commit point covers it.
    FlushBeforeCommit,
    /// A flush does not seal what is in the open chunk.
    FlushWithoutOpenChunk,
    /// The commit point steps over slots that are not stored yet.
    CommitOverGap,
    /// An object that is found in a chunk's slot is taken for the chunk.
    FenceTakenForChunk,
    /// After a lost reply, an object that is there is taken for the one that was sent.
    LostReplyTrusted,
    /// A new owner puts no fence.
    NoFence,
    /// A fence is deleted with the rest of what holds nothing live.
    FenceDeleted,
    /// A fence found in the log is stepped over, not followed.
    FenceSteppedOver,
    /// An epoch that somebody else claimed is used all the same.
    EpochShared,
    /// The newest checkpoint is looked for before the epoch is claimed.
    LookupBeforeClaim,
    /// A claimant does not look whether it was superseded.
    NewerClaimIgnored,
    /// An owner never looks whether somebody took over.
    WatchIgnored,
    /// A new owner begins in the slot of its fence.
    SlotReused,
    /// A chunk's data is put in order, and the map has it where it was.
    MapNotInOrder,
    /// The log of a replica that was promoted goes on where it was, and not in an epoch of its own.
    PromotedLogNotCut,
    /// A state of a replica is said to be complete before its objects are there.
    ShippedToldEarly,
    /// What a replica has no need of in its next state is deleted before that is complete.
    ShippedDeletesEarly,
    /// What vanished from the source while it was shipped is taken for what nobody needs.
    ShippedLossIgnored,
    /// The last record of a chunk is not replayed.
    RecordNotReplayed,
    /// A trim changes the map and not the log.
    TrimNotLogged,
    /// A smaller volume keeps what lies beyond its end.
    ShrinkKeepsData,
    /// A checkpoint does not wait for the slots that it names.
    CheckpointBeforeCommit,
    /// The changes of a failed checkpoint are forgotten.
    FailedCheckpointForgotten,
    /// Garbage is deleted before the checkpoint that frees it is stored.
    DeleteBeforeCheckpoint,
    /// Garbage is deleted without a look for a newer epoch.
    DeleteWithoutLook,
    /// A chunk that loses some of its sectors is counted as dead.
    LiveCountTooLow,
    /// A trim is acknowledged that the mirror does not have.
    TrimNotMirrored,
    /// A segment of the mirror is forgotten when its slot is sealed.
    MirrorForgottenEarly,
    /// A dead owner's mirror is let go before its changes are made again.
    MirrorRetiredEarly,
    /// What only the mirror has is not appended to the journal.
    MirrorTailDropped,
    /// One change more than there is is taken for being in the journal.
    MirrorTailMisplaced,
    /// Recovery does not look who had the volume meanwhile.
    RivalIgnored,
    /// A frame's checksum is not verified.
    FrameCrcIgnored,
    /// A header's checksum is not verified.
    HeaderCrcIgnored,
    /// A frame is looked for where it would be if none before it were compressed.
    FramesSoughtAsPlain,
    /// The end of a frame that was cut off reads as zeros.
    ShortFrameZeroed,
    /// Every sealing of an object draws the same salt.
    SaltReused,
    /// A sealed object does not know its name.
    SealNotBound,
    /// The last segment of a sealed object is like any other.
    SealEndNotMarked,
    /// The tag of a segment is not verified.
    SealTagIgnored,
    /// Every run of a journal draws the same salt.
    RunSaltReused,
    /// All batches of a run are sealed with one nonce.
    BatchNonceStands,
    /// The header of a batch is not authenticated.
    BatchHeaderNotBound,
    /// The tag of a batch is not verified.
    BatchTagIgnored,
    /// A frame in a cache does not know what it is, nor its slot.
    CachedNotBound,
    /// The tag of a frame in a cache is not verified.
    CachedTagIgnored,
    /// A batch's checksum is not verified.
    BatchCrcIgnored,
    /// A segment of the journal is used again before its slots are committed.
    SegmentReusedEarly,
    /// The header of a segment is written with its first batch, not before.
    SegmentHeaderSkipped,
    /// A flush is acknowledged before the journal has it.
    FlushBeforeJournal,
    /// What the journal has and the store has not is not taken over.
    JournalNotReplayed,
    /// What the journal has is taken over from one slot too late.
    JournalMisplaced,
    /// A journal is taken over although somebody else had the volume meanwhile.
    JournalRivalIgnored,
    /// A flush is acknowledged although the write that it waited for has failed.
    JournalFailureIgnored,
    /// Flushes wait for ever for a journal that has failed.
    JournalFailureHidden,
    /// Writers do not wait, however far the store is behind.
    LagUnbounded,
    /// An epoch is claimed before the journal has noted the claim.
    ClaimNotNoted,
    /// The collector moves what it has read although it was overwritten meanwhile.
    CollectorIgnoresOverwrite,
    /// What the collector has moved is neither in the mirror nor in the journal.
    MoveNotMirrored,
    /// A chunk that was emptied is deleted before a checkpoint knows that.
    VictimDeletedEarly,
    /// Chunks and map objects are deleted although a snapshot needs them.
    SnapshotNotKept,
    /// Map objects are.
    SnapshotMapNotKept,
    /// A deleted snapshot takes with it what the one before it needs.
    SnapshotBeforeForgotten,
    /// A snapshot is acknowledged that is not in the log.
    SnapshotNotLogged,
    /// A snapshot in the log is not replayed.
    SnapshotNotReplayed,
    /// A snapshot is of the last checkpoint, whatever was written since.
    SnapshotStale,
    /// A deleted snapshot is let go although several states came from it.
    BranchForgotten,
    /// After a rollback the volume still counts as come from the newest snapshot.
    RollbackKeepsBase,
    /// A rollback is not replayed.
    RollbackNotReplayed,
    /// A snapshot is deleted although clones need it.
    ChildrenIgnored,
    /// What the volume has lost is deleted although it is still kept for the past.
    RetentionIgnored,
    /// A snapshot that somebody has asked to keep is deleted when its time has come.
    WishToKeepIgnored,
    /// What a point of the past needs is deleted before the point itself is.
    PointOutlivesGarbage,
    /// A block of a source is marked before it is written.
    SourceMarkedEarly,
    /// A block of a source that is overwritten is not marked.
    SourceNotMarked,
    /// A write to a part of a block of a source does not fetch the rest of it.
    SourceEdgeIgnored,
    /// A block of a source is fetched although somebody else has brought it meanwhile.
    SourceTurnUnchecked,
    /// A receipt is not noted before the volume is written.
    ReceiptNotNoted,
    /// Who gives a volume a name does not look whether it is being purged.
    NameUnchecked,
    /// Who purges a volume does not look, once that is known, whether it has a name or clones.
    NeedUnchecked,
    /// A step in the trash that somebody else took counts as one's own.
    TrashStepShared,
    /// The owner of a mirrored volume goes on without a store, and records that nowhere.
    ReplicaLeftUnrecorded,
    /// A mirrored volume is read from the home store, whatever it lacks.
    ReplicaStaleRead,
    /// What is in the way in a store that comes back stays there.
    ReplicaStaleKept,
    /// A mirrored volume is taken over by who reaches one of its stores only.
    ReplicaTakenAlone,
    /// The owner carries out a request that was withdrawn.
    RequestWithdrawnServed,
    /// The next owner carries out once more what the last one had taken.
    RequestServedAgain,
    /// An owner answers a request without a look whether it is the owner still.
    RequestAnsweredUnsure,
    /// The frames of a chunk are taken for whole.
    ScrubSkipsFrames,
    /// A chunk is put back with what was found for it, without a look at its checksums.
    MendUnproved,
    /// An encrypted volume is used as its description says, whoever has written that.
    DescriptionUnchecked,
    /// What the first copy of an object has takes the place of the others, whether it is whole or not.
    CopyUnproved,
}

impl Mutant {
    /// Every mistake of the engine, for the simulator. Those of the pool are for `tests/engine/trash_races.rs`,
    /// those of mirrored volumes for `tests/engine/mirror.rs` and what is below it, those of scrubbing and mending for `scrub.rs` and
    /// `mend.rs` beside it, those of requests for `hosts.rs` there, the others of sealed objects for `seal/key.rs` and
    /// `seal/store.rs`, those of sealed files for
    /// `cipher.rs`.
    pub const ALL: [Mutant; 68] = [
        Mutant::FlushBeforeCommit,
        Mutant::FlushWithoutOpenChunk,
        Mutant::CommitOverGap,
        Mutant::FenceTakenForChunk,
        Mutant::LostReplyTrusted,
        Mutant::NoFence,
        Mutant::FenceDeleted,
        Mutant::FenceSteppedOver,
        Mutant::EpochShared,
        Mutant::LookupBeforeClaim,
        Mutant::NewerClaimIgnored,
        Mutant::WatchIgnored,
        Mutant::SlotReused,
        Mutant::MapNotInOrder,
        Mutant::RecordNotReplayed,
        Mutant::TrimNotLogged,
        Mutant::ShrinkKeepsData,
        Mutant::CheckpointBeforeCommit,
        Mutant::FailedCheckpointForgotten,
        Mutant::DeleteBeforeCheckpoint,
        Mutant::DeleteWithoutLook,
        Mutant::LiveCountTooLow,
        Mutant::TrimNotMirrored,
        Mutant::MirrorForgottenEarly,
        Mutant::MirrorRetiredEarly,
        Mutant::MirrorTailDropped,
        Mutant::MirrorTailMisplaced,
        Mutant::RivalIgnored,
        Mutant::FrameCrcIgnored,
        Mutant::HeaderCrcIgnored,
        Mutant::FramesSoughtAsPlain,
        Mutant::ShortFrameZeroed,
        Mutant::SaltReused,
        Mutant::RunSaltReused,
        Mutant::BatchNonceStands,
        Mutant::BatchHeaderNotBound,
        Mutant::BatchCrcIgnored,
        Mutant::SegmentReusedEarly,
        Mutant::SegmentHeaderSkipped,
        Mutant::FlushBeforeJournal,
        Mutant::JournalNotReplayed,
        Mutant::JournalMisplaced,
        Mutant::JournalRivalIgnored,
        Mutant::JournalFailureIgnored,
        Mutant::JournalFailureHidden,
        Mutant::LagUnbounded,
        Mutant::ClaimNotNoted,
        Mutant::CollectorIgnoresOverwrite,
        Mutant::MoveNotMirrored,
        Mutant::VictimDeletedEarly,
        Mutant::SnapshotNotKept,
        Mutant::SnapshotMapNotKept,
        Mutant::SnapshotBeforeForgotten,
        Mutant::SnapshotNotLogged,
        Mutant::SnapshotNotReplayed,
        Mutant::SnapshotStale,
        Mutant::BranchForgotten,
        Mutant::RollbackKeepsBase,
        Mutant::RollbackNotReplayed,
        Mutant::ChildrenIgnored,
        Mutant::RetentionIgnored,
        Mutant::WishToKeepIgnored,
        Mutant::PointOutlivesGarbage,
        Mutant::SourceMarkedEarly,
        Mutant::SourceNotMarked,
        Mutant::SourceEdgeIgnored,
        Mutant::SourceTurnUnchecked,
        Mutant::ReceiptNotNoted,
    ];
}

#[cfg(debug_assertions)]
thread_local! {
    static MADE: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Whether this thread makes the mistake.
#[cfg(debug_assertions)]
pub fn on(mutant: Mutant) -> bool {
    MADE.get() == Some(mutant)
}

/// Whether this thread makes the mistake: never, in this build.
#[cfg(not(debug_assertions))]
pub const fn on(_: Mutant) -> bool {
    false
}

/// Runs `work`, in which this thread makes the mistake.
#[cfg(debug_assertions)]
pub fn with<T>(mutant: Option<Mutant>, work: impl FnOnce() -> T) -> T {
    let before = MADE.replace(mutant);
    let done = work();
    MADE.set(before);
    done
}
