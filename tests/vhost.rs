//! The vhost-user frontend, against a VMM that is made here: its rings and requests, guests that are
//! hostile, and processes that are killed under a guest that goes on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod vhost {
    mod conformance;
    mod device;
    mod hostile;
    mod life;
    mod master;
    mod packed;
    pub mod program;
    mod restart;
}
