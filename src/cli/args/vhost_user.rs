//! Arguments of `serve vhost-user`.

use super::Open;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(in crate::cli) struct ServeVhostUser {
    #[arg(value_name = "NAME[@SNAP]")]
    pub(in crate::cli) name: String,
    /// The Unix socket to listen at, for one VMM at a time
    #[arg(long, value_name = "PATH")]
    pub(in crate::cli) socket: PathBuf,
    #[command(flatten)]
    pub(in crate::cli) open: Open,
    /// Keep nothing for a successor: the guest has to be reset if this process dies
    #[arg(long)]
    pub(in crate::cli) no_recovery: bool,
}
