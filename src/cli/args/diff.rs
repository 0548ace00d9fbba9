//! Differences between snapshots, and copies of them, as they were typed.

use clap::Args;

#[derive(Args, Debug)]
pub(in crate::cli) struct Diff {
    /// The older state; alone: what is shown, beside nothing
    #[arg(value_name = "NAME@SNAP")]
    pub(in crate::cli) first: String,
    /// The newer state; without @SNAP the volume as it is, while nobody has it
    #[arg(value_name = "NAME[@SNAP]")]
    pub(in crate::cli) second: Option<String>,
    /// Read what may differ, and show only what does
    #[arg(long)]
    pub(in crate::cli) exact: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct ExportDiff {
    /// The snapshot that the stream leads to
    #[arg(value_name = "NAME@SNAP")]
    pub(in crate::cli) name: String,
    /// A new file, or - for standard output
    #[arg(value_name = "FILE|-")]
    pub(in crate::cli) file: String,
    /// The snapshot of the volume that it leads from; without one, the stream holds all there is
    #[arg(long, value_name = "SNAP")]
    pub(in crate::cli) from: Option<String>,
    /// Replace the file if it is there
    #[arg(long)]
    pub(in crate::cli) force: bool,
    /// Show progress also where standard error is no terminal
    #[arg(long)]
    pub(in crate::cli) progress: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct ImportDiff {
    /// A file that export-diff has written, or - for standard input
    #[arg(value_name = "FILE|-")]
    pub(in crate::cli) file: String,
    /// The volume, which is not attached; made if the stream holds all there is
    pub(in crate::cli) name: String,
    /// Take the volume from an owner that has not closed it: that one is fenced
    #[arg(long)]
    pub(in crate::cli) takeover: bool,
    /// Show progress also where standard error is no terminal
    #[arg(long)]
    pub(in crate::cli) progress: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Copy {
    /// The snapshot; without @SNAP one is made for it
    #[arg(value_name = "NAME[@SNAP]")]
    pub(in crate::cli) name: String,
    /// Name of the copy, if it is to be another one
    #[arg(value_name = "NEW")]
    pub(in crate::cli) new: Option<String>,
    /// The other pool: s3://bucket/prefix or file:///dir
    #[arg(long, value_name = "URL")]
    pub(in crate::cli) to: String,
    /// Its S3 server, if it is not that of --endpoint-url
    #[arg(long, value_name = "URL")]
    pub(in crate::cli) to_endpoint_url: Option<String>,
    /// Its S3 region, if it is not that of --region
    #[arg(long, value_name = "R")]
    pub(in crate::cli) to_region: Option<String>,
    /// The snapshot that the copy is known to have; by default the newest that both have
    #[arg(long, value_name = "SNAP")]
    pub(in crate::cli) from: Option<String>,
    /// Take the copy from an owner that has not closed it: that one is fenced
    #[arg(long)]
    pub(in crate::cli) takeover: bool,
    /// Show progress also where standard error is no terminal
    #[arg(long)]
    pub(in crate::cli) progress: bool,
}
