//! Sealed chunks to the store: encoded and put in parallel, in the order of sealing.
//!
//! A chunk is put create-if-absent in its slot, for as long as it takes. The only end but
//! success is that somebody else's object is in the slot: a fence (a newer owner took over) or a
//! foreign chunk. Then nothing of this term can be committed any more. However many chunks wait,
//! none is put that lies [`IN_FLIGHT_MAX`](super::IN_FLIGHT_MAX) slots or more behind the commit
//! point, and only those being put are asked for.

use super::open_chunk::SealedChunk;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind};
use crate::format::VolumeId;
use crate::format::chunk::{ChunkParts, FRAME_SIZE};
use crate::format::fence::{self, Fence};
use crate::format::frame::{Compression, Sampling};
use crate::format::keys;
use crate::mutant::{self, Mutant};
use crate::store::{GetRange, Key, ReadBack, Store, StoreError, StoreErrorKind, StoreResult};
use crate::units::{Epoch, Seq};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;

/// Waits between attempts at what the store refuses (denied, bucket gone): credentials are
/// renewed and buckets restored while a device lives.
const REFUSED_DELAY: Duration = Duration::from_secs(2);

/// Encoded chunks whose memory is kept, and how long one must be for that: what is smaller costs
/// nothing to have anew.
const SPARES_MAX: usize = 8;
const SPARE_MIN: usize = 128 << 10;

/// What becomes of sealed chunks.
#[async_trait]
pub trait UploadSink: Send + Sync + 'static {
    /// Slots before this one may be put now. Grows when a PUT is done.
    fn window(&self) -> Seq;
    /// The chunk of a sealed slot, or why it is lost.
    async fn chunk(&self, seq: Seq) -> Result<Arc<SealedChunk>, Error>;
    /// The chunk is in the store. Told in the task that put it.
    fn stored(&self, chunk: &SealedChunk);
    /// The chunk of this slot is in the store, and nobody here uses it any more.
    fn uploaded(&self, seq: Seq);
    /// A slot is taken by somebody else: nothing from there on can be committed.
    fn lost(&self, why: Error);
}

/// Puts the chunks of one owner's term.
#[derive(Clone, Debug)]
pub struct Uploader {
    /// The volume.
    pub volume: VolumeId,
    /// The owner's term.
    pub epoch: Epoch,
    /// Where to.
    pub store: Arc<dyn Store>,
    /// PUTs in flight.
    pub parallel: usize,
    /// For the time of sealing.
    pub clock: Arc<dyn Clock>,
    /// Memory of encoded chunks that are in the store, while others are on their way.
    pub spares: Arc<Mutex<Vec<Vec<u8>>>>,
    /// How chunks are compressed.
    pub compression: Compression,
    /// What is worth a try: of all chunks together.
    pub sampling: Arc<Mutex<Sampling>>,
}

impl Uploader {
    /// Puts what arrives, until the channel is closed and empty or a slot is lost. Each chunk is
    /// encoded and put by a task of its own; dropping the future ends them all.
    pub async fn run(self, mut sealed: UnboundedReceiver<Seq>, sink: Arc<dyn UploadSink>) {
        let mut puts = JoinSet::new();
        let mut open = true;
        let mut next: Option<Seq> = None;
        loop {
            let room = puts.len() < self.parallel;
            if let Some(seq) = next.take_if(|seq| room && *seq < sink.window()) {
                puts.spawn(self.clone().put(seq, sink.clone()));
            }
            tokio::select! {
                biased;
                Some(put) = puts.join_next(), if !puts.is_empty() => match put {
                    Ok(Ok(seq)) => {
                        sink.uploaded(seq);
                        if puts.is_empty() {
                            self.spares().clear();
                        }
                    }
                    Ok(Err(why)) => return sink.lost(why),
                    Err(why) => {
                        let why = Error::failed("the task of a chunk died").because(why);
                        return sink.lost(why);
                    }
                },
                received = sealed.recv(), if open && next.is_none() => match received {
                    Some(seq) => next = Some(seq),
                    None => open = false,
                },
                else => return,
            }
        }
    }

    fn spares(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps memory for the next chunk.
    fn reuse(&self, memory: Vec<u8>) {
        let mut spares = self.spares();
        if memory.capacity() >= SPARE_MIN && spares.len() < SPARES_MAX {
            spares.push(memory);
        }
    }

    async fn put(self, seq: Seq, sink: Arc<dyn UploadSink>) -> Result<Seq, Error> {
        let chunk = sink.chunk(seq).await?;
        let memory = match chunk.payload.len() < SPARE_MIN {
            true => Vec::new(),
            false => self.spares().pop().unwrap_or_default(),
        };
        let body = self.encode(&chunk, memory).await;
        let key = keys::slot(self.volume, seq, self.epoch);
        put_slot(&*self.store, &key, &body).await?;
        // A store in memory still has it.
        if body.is_unique() && body.len() >= SPARE_MIN {
            self.reuse(Vec::from(body));
        }
        sink.stored(&chunk);
        Ok(seq)
    }

    /// The chunk's object. Whoever else has something to do gets a turn after each millisecond or so of
    /// that, so that no read waits for a whole chunk.
    async fn encode(&self, chunk: &SealedChunk, memory: Vec<u8>) -> Bytes {
        let parts = ChunkParts {
            volume: self.volume,
            epoch: self.epoch,
            seq: chunk.seq,
            committed: chunk.committed,
            sealed_at_ms: self.clock.now_ms(),
            records: &chunk.records,
            compression: self.compression,
        };
        let mut encoder = parts.encoder(chunk.payload.len(), memory);
        let turn = match self.compression {
            Compression::None => usize::MAX,
            Compression::Lz4 => 8,
            Compression::Zstd(..4) => 2,
            Compression::Zstd(_) => 1,
        };
        let (mut done, mut together) = (0_usize, Vec::new());
        for index in 0..chunk.payload.len().div_ceil(FRAME_SIZE) as u32 {
            let mut sampling = self.sampling();
            let tries = sampling.tries();
            encoder.frame(chunk.payload.part(index, FRAME_SIZE, &mut together), &mut sampling);
            self.learn(sampling);
            done += usize::from(tries);
            if tries && done.is_multiple_of(turn) {
                tokio::task::yield_now().await;
            }
        }
        Bytes::from(encoder.finish())
    }

    fn sampling(&self) -> Sampling {
        *self.sampling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, sampling: Sampling) {
        *self.sampling.lock().unwrap_or_else(PoisonError::into_inner) = sampling;
    }
}

async fn put_slot(store: &dyn Store, key: &Key, body: &Bytes) -> Result<(), Error> {
    loop {
        let error = match store.put_if_absent(key, body.clone()).await {
            Ok(()) => return Ok(()),
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {
                if mutant::on(Mutant::FenceTakenForChunk) {
                    return Ok(());
                }
                match read_back(store, key, body).await {
                    Ok(there) if there == *body => return Ok(()),
                    Ok(there) => return Err(taken(key, &there)),
                    Err(e) => e,
                }
            }
            Err(e) => e,
        };
        refused(key, &error).await;
    }
}

async fn read_back(store: &dyn Store, key: &Key, body: &Bytes) -> StoreResult<Bytes> {
    let mut back = ReadBack::new(key, body);
    loop {
        if let Some(there) = back.hears(store.get(key, GetRange::All).await?)? {
            return Ok(there);
        }
    }
}

async fn refused(key: &Key, error: &StoreError) {
    tracing::error!(%key, "the store does not take a chunk, trying on: {error}");
    tokio::time::sleep(REFUSED_DELAY).await;
}

fn taken(key: &Key, there: &[u8]) -> Error {
    if !there.starts_with(fence::MAGIC) {
        return Error::corrupt(format!("log slot {key} holds another owner's chunk"));
    }
    match Fence::parse(there) {
        Ok(fence) => fenced(&fence),
        Err(e) => Error::corrupt(format!("log slot {key} holds a damaged fence")).because(e),
    }
}

/// The error of an owner that was fenced.
pub fn fenced(fence: &Fence) -> Error {
    let message = format!(
        "volume {} was taken over by {} (epoch {} was fenced by epoch {})",
        fence.volume, fence.owner, fence.epoch, fence.next_epoch
    );
    Error::new(ErrorKind::Fenced, message).hint("detach here; the new owner has the volume")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Op;
    use crate::store::fault::{Fault, FaultStore, Rule};
    use crate::store::memory::MemoryStore;

    /// Puts a chunk where `there` is, through a store whose first `damaged` reads are cut short.
    async fn put_over(there: &[u8], chunk: &[u8], damaged: u64) -> Result<(), Error> {
        let (volume, seq) = (VolumeId::from_random([7; 16]), Seq(3));
        let key = keys::slot(volume, seq, Epoch(1));
        let memory = Arc::new(MemoryStore::new());
        memory.put_if_absent(&key, Bytes::copy_from_slice(there)).await?;
        let store = FaultStore::new(memory, 1);
        let rule = store.handle().add(Rule::new(Fault::Truncate).on(&[Op::Get]).times(damaged));
        let outcome = put_slot(&store, &key, &Bytes::copy_from_slice(chunk)).await;
        assert_eq!(rule.hits(), damaged);
        outcome
    }

    #[tokio::test(start_paused = true)]
    async fn damage_on_the_way_does_not_make_a_chunk_another_owners() {
        let fence = Fence {
            volume: VolumeId::from_random([7; 16]),
            epoch: Epoch(1),
            seq: Seq(3),
            next_epoch: Epoch(2),
            owner: "somebody".into(),
        };
        let (ours, theirs) = ([1; 5000], [2; 5000]);
        for damaged in 0..6 {
            put_over(&ours, &ours, damaged).await.unwrap();
            let error = put_over(&fence.encode(), &ours, damaged).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Fenced, "{damaged}: {error}");
            let error = put_over(&theirs, &ours, damaged).await.unwrap_err();
            assert!(error.to_string().contains("another owner's chunk"), "{damaged}: {error}");
        }
    }
}
