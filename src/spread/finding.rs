//! Finding a slot of a log, wherever it lies.

use super::{Asker, FENCE_MAX, Spread, Version, name_in};
use crate::format::fence;
use crate::format::placement::Stay;
use crate::store::{
    GetRange, Key, ObjectInfo, Op, StoreError, StoreErrorKind, StoreResult, address,
};
use bytes::Bytes;
use std::sync::Arc;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Question {
    Get(GetRange),
    Head,
}

/// What is there.
#[derive(Debug)]
pub(super) enum Answer {
    Bytes(Bytes),
    Info(ObjectInfo),
}

/// What one stay says.
enum Said {
    It(Answer),
    /// A fence, perhaps, or something as short: a newer stay may know better.
    Perhaps(StoreResult<Answer>),
    Nothing,
}

impl Spread {
    /// Asks for the slot `key`. See the module above for the order.
    ///
    /// # Errors
    /// NotFound: it is in no store. Others: the store's in which it is or may be.
    pub(super) async fn find(
        &self,
        asker: Asker,
        key: &Key,
        question: Question,
    ) -> StoreResult<Answer> {
        let mut version = self.version();
        loop {
            let stays = version.stays(key);
            // An object that moves while it is looked for is missed at most once for each move.
            for _ in 0..stays.len().max(1) {
                if let Some(found) = self.look(asker, key, question, &stays).await? {
                    return found;
                }
            }
            let newer = self.refresh(asker).await?;
            if newer.object.number == version.object.number {
                return Err(self.missing(key, question));
            }
            version = newer;
        }
    }

    /// Asks all stays once, that at which it was last seen before the others.
    async fn look(
        &self,
        asker: Asker,
        key: &Key,
        question: Question,
        stays: &[Stay],
    ) -> StoreResult<Option<StoreResult<Answer>>> {
        let last = match stays {
            [_, _, ..] => self.remembered().get(key).copied(),
            _ => None,
        };
        let seen = last.and_then(|last| stays.iter().position(|stay| *stay == last));
        let rest = (0..stays.len()).filter(|at| Some(*at) != seen);
        for at in seen.into_iter().chain(rest) {
            match self.ask(asker, key, question, stays[at], at == 0).await? {
                Said::It(answer) => {
                    self.remember(key, stays[at], stays.len());
                    return Ok(Some(Ok(answer)));
                }
                Said::Nothing => {}
                Said::Perhaps(found) => {
                    for (newer, stay) in stays[..at].iter().enumerate() {
                        match self.ask(asker, key, question, *stay, newer == 0).await? {
                            Said::It(answer) => {
                                self.remember(key, *stay, stays.len());
                                return Ok(Some(Ok(answer)));
                            }
                            Said::Perhaps(found) => return Ok(Some(found)),
                            Said::Nothing => {}
                        }
                    }
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    fn remember(&self, key: &Key, stay: Stay, stays: usize) {
        if stays > 1 {
            self.remembered().put(key.clone(), stay);
        }
    }

    /// Remembers where a slot was just created.
    pub(super) fn created(&self, version: &Version, key: &Key, stay: Stay) {
        self.remember(key, stay, version.stays(key).len());
    }

    async fn ask(
        &self,
        asker: Asker,
        key: &Key,
        question: Question,
        stay: Stay,
        is_newest: bool,
    ) -> StoreResult<Said> {
        let store = self.member(asker, stay.store).await?;
        let name = name_in(stay.generation, key)?;
        let (answer, is_short) = match question {
            Question::Get(range) => {
                let got = store.get(&name, range).await;
                let is_fence = |bytes: &Bytes| bytes.starts_with(fence::MAGIC);
                let is_short = match &got {
                    Ok(bytes) => is_fence(bytes) || starts_in_fence(range),
                    Err(e) => e.kind == StoreErrorKind::Range,
                };
                (got.map(Answer::Bytes), is_short)
            }
            Question::Head => {
                let got = store.head(&name).await;
                let is_short = got.as_ref().is_ok_and(|info| info.size <= FENCE_MAX);
                let named =
                    |info: ObjectInfo| Answer::Info(ObjectInfo { key: key.clone(), ..info });
                (got.map(named), is_short)
            }
        };
        match answer {
            Err(e) if e.kind == StoreErrorKind::NotFound => Ok(Said::Nothing),
            answer if is_short && !is_newest => Ok(Said::Perhaps(answer)),
            answer => answer.map(Said::It),
        }
    }

    fn missing(&self, key: &Key, question: Question) -> StoreError {
        let op = match question {
            Question::Get(_) => Op::Get,
            Question::Head => Op::Head,
        };
        let object = address(&self.home(Asker::Setup).url(), key.as_str());
        let text = match self.version().object.number {
            0 => "there is no such object".to_owned(),
            _ => "there is no such object in any store of the pool".to_owned(),
        };
        StoreError::new(StoreErrorKind::NotFound, op, object, text)
    }

    /// Where the slot's present or newest stay is, if its store is open.
    pub(super) fn open_stay(
        &self,
        asker: Asker,
        key: &Key,
    ) -> Option<(Arc<dyn crate::store::Store>, Key)> {
        let version = self.version();
        let stays = version.stays(key);
        let seen = self.remembered().get(key).copied().filter(|stay| stays.contains(stay));
        let stay = seen.or_else(|| stays.first().copied())?;
        let store = match version.members.get(&stay.store) {
            Some(member) => member.opened(asker)?.clone(),
            None => self.home(asker).clone(),
        };
        Some((store, name_in(stay.generation, key).ok()?))
    }
}

/// A part that begins inside of what may be a fence, behind its first bytes.
fn starts_in_fence(range: GetRange) -> bool {
    matches!(range, GetRange::Part { offset: 1..=FENCE_MAX, .. })
}
