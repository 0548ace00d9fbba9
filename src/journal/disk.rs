//! A part of a local disk: whole blocks, written past the page cache.
//!
//! Contract of every [`Disk`]:
//! * a write that returned `Ok` survives the loss of power, whole;
//! * a write that did not return, or failed, may have happened to any of its sectors of 512 bytes
//!   and to no other place. After a failure nobody can say what the disk has: it is written no more
//!   (a second `fdatasync` may report success for data that is gone);
//! * what was never written reads as zeros;
//! * a dropped future is a write that did not return.

pub use crate::direct::{BLOCK, Blocks, check_place};

use async_trait::async_trait;
use std::fmt;
use std::io;

/// A part of a local disk. See the module's documentation for the contract.
#[async_trait]
pub trait Disk: Send + Sync + fmt::Debug {
    /// Its name, for people.
    fn name(&self) -> String;

    /// Its size in bytes, a multiple of [`BLOCK`].
    fn size(&self) -> u64;

    /// Writes all of `blocks` at `offset`, a multiple of [`BLOCK`], durably. Gives the buffer back.
    ///
    /// # Errors
    /// The place lies outside, or the disk failed: then nothing more may be written to it.
    async fn write(&self, offset: u64, blocks: Blocks) -> io::Result<Blocks>;

    /// Everything on it is in the store: nobody needs it any more.
    ///
    /// # Errors
    /// It cannot be given back, and stays.
    async fn retire(&self) -> io::Result<()> {
        Ok(())
    }

    /// Reads `len` bytes from `offset`, both multiples of [`BLOCK`].
    ///
    /// # Errors
    /// The place lies outside, or the disk failed.
    async fn read(&self, offset: u64, len: usize) -> io::Result<Blocks>;
}
