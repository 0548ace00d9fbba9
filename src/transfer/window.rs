//! Pieces under way: several at once, begun and ended in the order of their addresses.
//!
//! Invariant: a piece begins only after every piece that begins [`WINDOW`] or more before it has ended well,
//! and at most [`DEPTH`] are under way. So of a copy that was cut off, whatever lies [`WINDOW`] before
//! anything that was begun is complete.

use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::future::Future;
use tokio::task::JoinHandle;

/// Bytes of a piece, whose address is a multiple of it.
pub const PIECE: u64 = 4 << 20;
/// The most pieces under way.
pub const DEPTH: usize = 8;
/// How far the first and the last of them are apart at most, in bytes.
pub const WINDOW: u64 = 64 << 20;

/// Where a piece lies, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its first byte.
    pub start: u64,
    /// Its length, not zero.
    pub len: usize,
}

impl Piece {
    /// The byte behind it.
    pub fn end(self) -> u64 {
        self.start + self.len as u64
    }
}

/// Work on pieces, in order. Dropping it ends what is under way.
#[derive(Debug)]
pub struct Window<T> {
    tasks: VecDeque<(Piece, JoinHandle<Result<T>>)>,
}

impl<T: Send + 'static> Window<T> {
    /// Nothing is under way.
    pub fn new() -> Window<T> {
        Window { tasks: VecDeque::new() }
    }

    /// The outcome of the first piece, if it has to end before the one at `start` may begin. Ask until there
    /// is none. Errors: that of the piece.
    pub async fn ended_before(&mut self, start: u64) -> Result<Option<(Piece, T)>> {
        let full = self.tasks.len() >= DEPTH;
        match self.tasks.front() {
            Some((first, _)) if full || first.start + WINDOW <= start => self.first().await,
            _ => Ok(None),
        }
    }

    /// Begins a piece that lies behind all others.
    pub fn begin(&mut self, piece: Piece, work: impl Future<Output = Result<T>> + Send + 'static) {
        self.tasks.push_back((piece, tokio::spawn(work)));
    }

    /// The outcome of the first piece that is under way; `None` where none is. Errors: that of the piece.
    pub async fn first(&mut self) -> Result<Option<(Piece, T)>> {
        let Some((piece, task)) = self.tasks.front_mut() else { return Ok(None) };
        let piece = *piece;
        let ended = task.await.map_err(|e| Error::failed("a copy ended").because(e));
        self.tasks.pop_front();
        ended?.map(|outcome| Some((piece, outcome)))
    }
}

impl<T> Drop for Window<T> {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|(_, task)| task.abort());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tokio::sync::oneshot;

    /// While the first piece is under way, none begins that lies a window behind it.
    #[tokio::test]
    async fn what_lies_a_window_back_has_ended() {
        let (release, released) = oneshot::channel::<()>();
        let (mut window, begun) = (Window::new(), Arc::new(Mutex::new(Vec::new())));
        let mut released = Some(released);
        let mut starts = vec![0, PIECE, 2 * PIECE, WINDOW - PIECE, WINDOW].into_iter();
        let feed = async {
            for start in starts.by_ref() {
                while window.ended_before(start).await.unwrap().is_some() {}
                let (first, begun) = (released.take(), begun.clone());
                window.begin(Piece { start, len: 1 }, async move {
                    begun.lock().unwrap().push(start);
                    if let Some(first) = first {
                        first.await.unwrap();
                    }
                    Ok(start)
                });
                tokio::task::yield_now().await;
            }
            while window.first().await.unwrap().is_some() {}
        };
        let watch = async {
            while begun.lock().unwrap().len() < 4 {
                tokio::task::yield_now().await;
            }
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert_eq!(*begun.lock().unwrap(), [0, PIECE, 2 * PIECE, WINDOW - PIECE]);
            release.send(()).unwrap();
        };
        tokio::join!(feed, watch);
        assert_eq!(begun.lock().unwrap().len(), 5);
    }

    #[tokio::test]
    async fn a_failure_is_told_and_ends_the_rest() {
        let mut window = Window::new();
        let piece = |n| Piece { start: n * PIECE, len: 1 };
        window.begin(piece(0), async { Err::<(), _>(Error::failed("bad")) });
        window.begin(piece(1), std::future::pending());
        assert_eq!(window.first().await.unwrap_err().to_string(), "bad");
        drop(window);
    }
}
