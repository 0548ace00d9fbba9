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
    /// The home store of a pool is gone for good: make the empty store that --store names the home store of a new
    /// pool, with the mirrored volumes that are in another store of the former one
    Rescue {
        /// The store that is left: s3://bucket/prefix or file:///dir
        #[arg(value_name = "URL")]
        url: String,
        /// What a volume is called from now on; repeat it (others are called after their ids)
        #[arg(long, value_name = "ID=NAME")]
        name: Vec<String>,
        /// S3 endpoint of the store that is left, if it is another one; repeat it for several paths
        #[arg(long, value_name = "URL")]
        store_endpoint_url: Vec<String>,
        /// S3 region of that store, if it is another one
        #[arg(long, value_name = "NAME")]
        store_region: Option<String>,
        /// Do not ask: what was written while that store was left out is lost
        #[arg(long)]
        yes: bool,
    },
    /// A store is gone for good: take it out of the pool, and have another one take its place, so that mirrored volumes
    /// have two copies again (for the home store: rescue)
    ReplaceStore {
        /// The id of the store that is gone, as `pool status` shows it
        id: String,
        /// The store that takes its place, empty or one of the pool: s3://bucket/prefix or file:///dir
        #[arg(long, value_name = "URL")]
        with: String,
        /// S3 endpoint of that store, if it is another one; repeat it for several paths
        #[arg(long, value_name = "URL")]
        store_endpoint_url: Vec<String>,
        /// S3 region of that store, if it is another one
        #[arg(long, value_name = "NAME")]
        store_region: Option<String>,
        /// Do not ask: what only the store that is gone had is lost
        #[arg(long)]
        yes: bool,
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
