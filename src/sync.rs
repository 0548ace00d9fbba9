//! The locks and channels of code whose interleavings are explored.
//!
//! They are those of the standard library and of tokio. `tests/schedules.rs` compiles the same
//! source files with types of the same names that a scheduler controls, so what is explored there
//! is what runs here. Code with a waiting protocol of its own takes them from here.

pub use std::sync::{Mutex, MutexGuard, PoisonError};
pub use tokio::sync::futures::Notified;
pub use tokio::sync::{Notify, oneshot};
