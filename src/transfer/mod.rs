//! Images into volumes and out of them: whole copies that take a while, in pieces, with holes as holes.
//!
//! Contract: whatever cuts a transfer off, nothing half done goes by a final name, and what is left says how
//! to go on.

pub mod progress;
pub mod stream;
