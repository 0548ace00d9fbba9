use clap::Args;

#[derive(Args, Debug)]
pub(in crate::cli) struct Import {
    /// The image: a file, a block device, a pipe, http(s)://..., or - for standard input
    #[arg(value_name = "FILE|URL|-")]
    pub(in crate::cli) from: String,
    /// The name of the new volume
    pub(in crate::cli) name: String,
    /// What the image is, instead of what its first bytes say
    #[arg(long, value_name = "FORMAT", value_parser = ["raw", "qcow2"])]
    pub(in crate::cli) format: Option<String>,
    /// The size of the volume, if it is to be larger than the image
    #[arg(long, value_name = "S", allow_hyphen_values = true)]
    pub(in crate::cli) size: Option<String>,
    /// Logical block size in bytes: 512 or 4096
    #[arg(long, value_name = "BYTES", default_value = "512")]
    pub(in crate::cli) block_size: String,
    /// Size of a chunk object: a power of two from 256K to 64M
    #[arg(long, value_name = "S", default_value = "4M")]
    pub(in crate::cli) chunk_size: String,
    /// How what is written is compressed: none, lz4, zstd, or zstd:1 (fast) to zstd:19 (small)
    #[arg(long, value_name = "HOW", visible_alias = "compression", default_value = "lz4")]
    pub(in crate::cli) compress: String,
    /// Go on with an import of the same image that was cut off, if there is one
    #[arg(long)]
    pub(in crate::cli) resume: bool,
    /// Also when it was begun by another process that may be alive, which is fenced
    #[arg(long, requires = "resume")]
    pub(in crate::cli) takeover: bool,
    /// Show the progress also where standard error is no terminal
    #[arg(long)]
    pub(in crate::cli) progress: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Export {
    /// The volume, as it is now, or a snapshot
    #[arg(value_name = "NAME[@SNAP]")]
    pub(in crate::cli) name: String,
    /// As it was at a moment that is still kept (see retain): a time (2026-11-22T10:00:00Z), how long ago
    /// (-2h), or a slot of its log (#1234)
    #[arg(long, value_name = "TIME|SEQ", allow_hyphen_values = true)]
    pub(in crate::cli) at: Option<String>,
    /// Where it goes: a file, a block device, a pipe, or - for standard output
    #[arg(value_name = "FILE|-")]
    pub(in crate::cli) to: String,
    /// The format [default: qcow2 for a FILE.qcow2, else raw]
    #[arg(long, value_name = "FORMAT", value_parser = ["raw", "qcow2"])]
    pub(in crate::cli) format: Option<String>,
    /// Go on with an export of the same state (a snapshot, or a volume that nobody wrote to since) that was cut off,
    /// if there is one, and keep what there is if this one is
    #[arg(long)]
    pub(in crate::cli) resume: bool,
    /// Compress it (qcow2)
    #[arg(long, short)]
    pub(in crate::cli) compress: bool,
    /// Replace a file that is there, or overwrite a block device
    #[arg(long)]
    pub(in crate::cli) force: bool,
    /// Show the progress also where standard error is no terminal
    #[arg(long)]
    pub(in crate::cli) progress: bool,
}
