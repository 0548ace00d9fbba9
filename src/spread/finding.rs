//! Finding a slot of a log, wherever it lies.

use super::{Asker, FENCE_MAX, Spread, Version, is_like_fence, name_in};
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
            let mut perhaps = None;
            // An object that moves while it is looked for is missed at most once for each move.
            for _ in 0..stays.len().max(1) {
                perhaps = match self.look(asker, key, question, &stays).await? {
                    Said::It(answer) => return Ok(answer),
                    Said::Perhaps(found) => Some(found),
                    Said::Nothing => None,
                };
                if perhaps.is_some() {
                    break;
                }
            }
            let newer = self.refresh(asker).await?;
            if newer.object.number == version.object.number {
                return perhaps.unwrap_or_else(|| Err(self.missing(key, question)));
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
    ) -> StoreResult<Said> {
        let last = match stays {
            [_, _, ..] => self.remembered().get(key).copied(),
            _ => None,
        };
        let seen = last.and_then(|last| stays.iter().position(|stay| *stay == last));
        let rest = (0..stays.len()).filter(|at| Some(*at) != seen);
        for at in seen.into_iter().chain(rest) {
            let mut said = self.ask(asker, key, question, stays[at]).await?;
            let mut place = at;
            if matches!(said, Said::Perhaps(_)) {
                // It may have come to a newer one since that was asked.
                for (newer, stay) in stays[..at].iter().enumerate() {
                    match self.ask(asker, key, question, *stay).await? {
                        Said::Nothing => {}
                        found => {
                            (said, place) = (found, newer);
                            break;
                        }
                    }
                }
            }
            match said {
                Said::Nothing => {}
                said => {
                    self.remember(key, stays[place], stays.len());
                    return Ok(said);
                }
            }
        }
        Ok(Said::Nothing)
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
    ) -> StoreResult<Said> {
        let store = self.member(asker, stay.store).await?;
        let name = name_in(stay.generation, key)?;
        let (answer, is_short) = match question {
            Question::Get(range) => {
                let got = store.get(&name, range).await;
                let is_short = match &got {
                    Ok(bytes) => may_be_of_fence(bytes, range),
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
            answer if is_short => Ok(Said::Perhaps(answer)),
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

/// Whether these may be bytes of a fence. Who asks for a part of a chunk knows how long it is.
fn may_be_of_fence(bytes: &Bytes, range: GetRange) -> bool {
    match range {
        GetRange::All | GetRange::Part { offset: 0, .. } => {
            is_like_fence(bytes, bytes.len() as u64)
        }
        GetRange::Part { offset, len } => {
            (bytes.len() as u64) < len || offset.saturating_add(len) <= FENCE_MAX
        }
    }
}
