//! The error every public call returns: a kind that says what the user should do, and one
//! sentence that says what failed, on which object or argument, why, and what to do next.
//!
//! Kinds are few on purpose: a new one exists only if the user would act differently. The exit
//! code of the command line is a function of the kind ([`ErrorKind::exit_code`]).

use std::error::Error as StdError;
use std::fmt;

/// What kind of failure, which is what the caller should do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// It did not work for a reason of this host (I/O, permission, missing driver).
    Failed,
    /// An argument or setting is wrong: correct it and call again.
    Usage,
    /// What was named does not exist.
    NotFound,
    /// What was to be made exists already.
    Exists,
    /// In use: attached here or owned elsewhere.
    Busy,
    /// A newer owner took the volume: this process may not go on with it.
    Fenced,
    /// The store refused the request or cannot be reached.
    Store,
    /// Stored data is damaged or missing.
    Corrupt,
    /// The object was written by a newer objblk and needs it.
    Unsupported,
}

impl ErrorKind {
    /// The process exit code (see the command line's conventions).
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Failed | ErrorKind::Unsupported => 1,
            ErrorKind::Usage => 2,
            ErrorKind::NotFound => 3,
            ErrorKind::Exists => 4,
            ErrorKind::Busy | ErrorKind::Fenced => 5,
            ErrorKind::Store => 6,
            ErrorKind::Corrupt => 7,
        }
    }
}

/// A failure with its kind, its one sentence, an optional hint and its cause.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Result with the crate's error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` that says `message` (no full stop at the end, names the object).
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), hint: None, source: None }
    }

    /// [`ErrorKind::Failed`].
    pub fn failed(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Failed, message)
    }

    /// [`ErrorKind::Usage`].
    pub fn usage(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Usage, message)
    }

    /// [`ErrorKind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::NotFound, message)
    }

    /// [`ErrorKind::Corrupt`].
    pub fn corrupt(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Corrupt, message)
    }

    /// Adds what the user should do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause; its text becomes part of the sentence.
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.source = Some(source.into());
        self
    }

    /// Puts what was being done before the message: `context: message`.
    pub fn context(mut self, context: impl fmt::Display) -> Error {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|s| &**s as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sentence_with_cause_and_hint() {
        let e = Error::failed("cannot open journal /j")
            .because(std::io::Error::other("disk on fire"))
            .hint("use another disk");
        assert_eq!(e.to_string(), "cannot open journal /j: disk on fire; use another disk");
        assert_eq!(e.kind().exit_code(), 1);
    }
}
