//! Verbs about the stores of a pool, as they were typed.

use clap::Subcommand;

/// What is done about the stores of a pool.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Stores {
    /// Add a store to the pool, and move its share of all objects there; where that is cut off, say it
    /// again, and once the store is there, rebalance
    AddStore {
        /// s3://bucket/prefix or file:///dir, empty
        #[arg(value_name = "URL")]
        url: String,
        /// Its share of objects, relative to that of the others: 1 to 10000
        #[arg(long, value_name = "W", default_value = "100")]
        weight: u32,
        /// S3 endpoint of this store, if it is another one; repeat it for several paths
        #[arg(long, value_name = "URL")]
        store_endpoint_url: Vec<String>,
        /// S3 region of this store, if it is another one
        #[arg(long, value_name = "NAME")]
        store_region: Option<String>,
        /// Move at most so many bytes a second
        #[arg(long, value_name = "BYTES")]
        rate: Option<String>,
        /// Move nothing now: rebalance does it
        #[arg(long)]
        later: bool,
    },
    /// Have a store take no more objects, and move those it has to the others
    DrainStore {
        /// Its id, as `pool status` shows it
        id: String,
        /// Move at most so many bytes a second
        #[arg(long, value_name = "BYTES")]
        rate: Option<String>,
    },
    /// Give a store another weight, and move what belongs elsewhere then
    WeighStore {
        /// Its id, as `pool status` shows it
        id: String,
        /// Its share of objects, relative to that of the others: 1 to 10000
        #[arg(value_name = "W")]
        weight: u32,
        /// Move at most so many bytes a second
        #[arg(long, value_name = "BYTES")]
        rate: Option<String>,
    },
    /// Take a drained store out of the pool
    RemoveStore {
        /// Its id, as `pool status` shows it
        id: String,
    },
    /// Move objects to the stores in which they should be, or go on with that
    Rebalance {
        /// Move at most so many bytes a second
        #[arg(long, value_name = "BYTES")]
        rate: Option<String>,
    },
}
