//! Images into volumes and out of them: whole copies that take a while, in pieces, with holes as holes.
//!
//! Contract: whatever cuts a transfer off, nothing half done goes by a final name, and what is left says how
//! to go on.

pub mod answer;
pub mod convert;
pub mod export;
pub mod image;
pub mod import;
pub mod origin;
pub mod partial;
pub mod place;
mod program;
pub mod progress;
pub mod resume;
pub mod source;
pub mod spool;
pub mod stream;
mod watched;
pub mod web;
mod window;
mod zeros;
