//! The verbs of replicas, as they were typed.

use clap::Args;

#[derive(Args, Debug)]
pub(in crate::cli) struct Replicate {
    pub(in crate::cli) name: String,
    /// The other pool, s3://bucket/prefix or file:///dir; made if the store is there without one
    #[arg(long, value_name = "URL")]
    pub(in crate::cli) to: String,
    /// What it is called there, if not the same
    #[arg(long = "as", value_name = "NAME")]
    pub(in crate::cli) new: Option<String>,
    /// Ship what there is so often, until told to end
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub(in crate::cli) interval: String,
    /// Ship what there is now, and end
    #[arg(long)]
    pub(in crate::cli) once: bool,
    /// Ship nothing: show what is there, and how far it is behind
    #[arg(long, conflicts_with_all = ["once", "rate"])]
    pub(in crate::cli) status: bool,
    /// Copy at most so many bytes a second
    #[arg(long, value_name = "BYTES")]
    pub(in crate::cli) rate: Option<String>,
    /// S3 endpoint of the other pool, if it is another one
    #[arg(long, value_name = "URL")]
    pub(in crate::cli) to_endpoint_url: Option<String>,
    /// S3 region of the other pool, if it is another one
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) to_region: Option<String>,
}
