//! Verbs about paths, as they were typed.

use clap::Subcommand;

/// What is done about paths. They belong to the process that serves a volume: of an NBD server, to all of
/// its volumes.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Path {
    /// Show paths: states, requests, errors, latencies
    List {
        /// Its name or device; all of this host if none is given
        #[arg(value_name = "NAME|DEVICE")]
        name: Option<String>,
    },
    /// Add a path that leads to the same store
    Add {
        #[arg(value_name = "NAME|DEVICE")]
        name: String,
        /// URL[,priority=N][,weight=N][,source=ADDRESS][,interface=NAME][,expand=no]
        #[arg(value_name = "URL")]
        path: String,
    },
    /// Remove a path; what is under way by it ends as it may
    Remove {
        #[arg(value_name = "NAME|DEVICE")]
        name: String,
        /// Its number or name, as `path list` shows it
        path: String,
    },
    /// Have a path be used again, once its checks succeed
    Enable {
        #[arg(value_name = "NAME|DEVICE")]
        name: String,
        /// Its number or name, as `path list` shows it
        path: String,
    },
    /// Have a path not be used
    Disable {
        #[arg(value_name = "NAME|DEVICE")]
        name: String,
        /// Its number or name, as `path list` shows it
        path: String,
    },
    /// Select paths otherwise: round-robin, queue-length, service-time, historical-service-time
    SetSelector {
        #[arg(value_name = "NAME|DEVICE")]
        name: String,
        selector: String,
    },
}
