//! Keys of encrypted volumes, as they were typed.

use crate::error::{Error, Result};
use crate::seal::{KeyGiven, KeyPlace};
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

/// What opens encrypted volumes.
#[derive(Args, Clone, Debug)]
pub(in crate::cli) struct Given {
    /// Open an encrypted volume by the bytes of this file, at least 32
    #[arg(long, global = true, value_name = "FILE", help_heading = "Key")]
    #[arg(conflicts_with_all = ["key_command", "passphrase_file"])]
    pub(in crate::cli) key_file: Option<PathBuf>,
    /// Open it by what this command of the shell prints, at least 32 bytes
    #[arg(long, global = true, value_name = "COMMAND", help_heading = "Key")]
    #[arg(conflicts_with = "passphrase_file")]
    pub(in crate::cli) key_command: Option<String>,
    /// Open it by the passphrase in this file; without any of these a terminal is asked for one
    #[arg(long, global = true, value_name = "FILE", help_heading = "Key")]
    pub(in crate::cli) passphrase_file: Option<PathBuf>,
}

impl Given {
    /// What was given. Errors: usage, for no path.
    pub(in crate::cli) fn key(&self) -> Result<Option<KeyGiven>> {
        place(&self.key_file, &self.key_command, &self.passphrase_file)
    }
}

/// What opens a new slot.
#[derive(Args, Clone, Debug)]
pub(in crate::cli) struct NewKey {
    /// The new slot is opened by the bytes of this file
    #[arg(long, value_name = "FILE")]
    #[arg(conflicts_with_all = ["new_key_command", "new_passphrase_file"])]
    new_key_file: Option<PathBuf>,
    /// The new slot is opened by what this command prints
    #[arg(long, value_name = "COMMAND", conflicts_with = "new_passphrase_file")]
    new_key_command: Option<String>,
    /// The new slot is opened by the passphrase in this file
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    /// What the new slot is called
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(in crate::cli) label: String,
}

impl NewKey {
    /// What was given. Errors: usage, for no path.
    pub(in crate::cli) fn key(&self) -> Result<Option<KeyGiven>> {
        place(&self.new_key_file, &self.new_key_command, &self.new_passphrase_file)
    }
}

fn place(
    file: &Option<PathBuf>,
    command: &Option<String>,
    passphrase: &Option<PathBuf>,
) -> Result<Option<KeyGiven>> {
    // Another process may read it, from elsewhere.
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|e| Error::usage("the key's file is no path").because(e))
    };
    let place = match (file, command, passphrase) {
        (Some(file), _, _) => KeyPlace::File(absolute(file)?),
        (_, Some(command), _) => KeyPlace::Command(command.clone()),
        (_, _, Some(file)) => KeyPlace::Passphrase(absolute(file)?),
        _ => return Ok(None),
    };
    Ok(Some(KeyGiven::from_place(place)))
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Key {
    /// Show the slots of a volume's key: what opens it
    List { name: String },
    /// Let something else open the volume as well
    Add {
        name: String,
        #[command(flatten)]
        new: NewKey,
    },
    /// Let something else open the volume instead of what is given
    Change {
        name: String,
        #[command(flatten)]
        new: NewKey,
    },
    /// Remove a slot; what is given has to open another one
    Remove {
        name: String,
        /// Its number, as `key list` shows it
        slot: u32,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}
