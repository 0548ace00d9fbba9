//! What a user has to open a slot of a key, and how it is got.

use super::secret::Secret;
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// The fewest bytes of a key file, or of what a command prints: who has fewer may be guessing.
const BYTES_MIN: usize = 32;
/// The most bytes that are read of one.
const BYTES_MAX: usize = 64 << 10;
/// How long a command may take.
const COMMAND_MAX: Duration = Duration::from_secs(60);
/// The fewest bytes of a passphrase.
const PASSPHRASE_MIN: usize = 8;

/// Where what opens a slot comes from. It may be written down: it is no secret itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum KeyPlace {
    /// A file of at least 32 bytes.
    File(PathBuf),
    /// What a command of the shell prints.
    Command(String),
    /// A file that holds a passphrase.
    Passphrase(PathBuf),
    /// Whoever sits at the terminal.
    Asked,
}

/// What opens a slot.
#[derive(Clone, Debug)]
pub enum Material {
    /// A passphrase.
    Passphrase(Secret),
    /// Bytes that nobody can guess.
    Bytes(Secret),
}

/// Where what opens a slot comes from, and what it is if somebody was asked already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyGiven {
    place: KeyPlace,
    #[serde(skip)]
    answer: Option<Secret>,
}

impl KeyGiven {
    /// From that place.
    pub fn from_place(place: KeyPlace) -> KeyGiven {
        KeyGiven { place, answer: None }
    }

    /// What somebody has answered.
    pub fn answered(answer: Secret) -> KeyGiven {
        KeyGiven { place: KeyPlace::Asked, answer: Some(answer) }
    }

    /// The place.
    pub fn place(&self) -> &KeyPlace {
        &self.place
    }

    /// What somebody was asked for, which is to be passed on beside all else.
    pub fn answer(&self) -> Option<&Secret> {
        self.answer.as_ref()
    }

    /// Takes the answer that came beside all else.
    pub fn hear(&mut self, answer: Secret) {
        self.answer = Some(answer);
    }

    /// Gets it; `what` it is for is said to whoever is asked. Waits for a command or a user.
    ///
    /// # Errors
    /// Usage: there is nobody to ask, or it is too short to be a key. Failed: it cannot be had.
    pub fn material(&self, what: &str) -> Result<Material> {
        match &self.place {
            KeyPlace::File(path) => {
                let bytes = read("key file", path)?;
                enough(format!("the key file {}", path.display()), &bytes)?;
                Ok(Material::Bytes(bytes))
            }
            KeyPlace::Command(command) => {
                let bytes = printed_by(command)?;
                enough("what the key command prints".into(), &bytes)?;
                Ok(Material::Bytes(bytes))
            }
            KeyPlace::Passphrase(path) => {
                passphrase(one_line(&read("passphrase file", path)?)).map(Material::Passphrase)
            }
            KeyPlace::Asked => match &self.answer {
                Some(answer) => Ok(Material::Passphrase(answer.clone())),
                None => ask(&format!("Passphrase of {what}: ")).map(Material::Passphrase),
            },
        }
    }
}

/// True where there is somebody to ask.
pub fn has_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks for a passphrase.
///
/// # Errors
/// Usage: there is nobody to ask, or it is too short. Failed: the terminal fails.
pub fn ask(prompt: &str) -> Result<Secret> {
    if !has_terminal() {
        return Err(Error::usage("there is no terminal to ask for a passphrase")
            .hint(crate::store::KEY_HINT));
    }
    let typed = rpassword::prompt_password(prompt);
    let typed = typed.map_err(|e| Error::failed("cannot ask for the passphrase").because(e))?;
    passphrase(Secret::new(typed.into_bytes()))
}

fn passphrase(secret: Secret) -> Result<Secret> {
    if secret.bytes().len() >= PASSPHRASE_MIN {
        return Ok(secret);
    }
    Err(Error::usage(format!("a passphrase has at least {PASSPHRASE_MIN} bytes")))
}

/// Without the line feed that editors put behind it.
fn one_line(text: &Secret) -> Secret {
    let bytes = text.bytes();
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    Secret::new(bytes.strip_suffix(b"\r").unwrap_or(bytes).to_vec())
}

fn enough(what: String, bytes: &Secret) -> Result<()> {
    match bytes.bytes().len() {
        len if len < BYTES_MIN => {
            let text = format!("{what} has {len} bytes, and a key has at least {BYTES_MIN}");
            Err(Error::usage(text).hint("make one with `head -c 32 /dev/urandom`"))
        }
        len if len > BYTES_MAX => {
            Err(Error::usage(format!("{what} has more than {BYTES_MAX} bytes, and is no key")))
        }
        _ => Ok(()),
    }
}

fn read(what: &str, path: &Path) -> Result<Secret> {
    let failed = |e: std::io::Error| {
        let kind = match e.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::Usage,
            _ => ErrorKind::Failed,
        };
        Error::new(kind, format!("cannot read the {what} {}", path.display())).because(e)
    };
    take(File::open(path).map_err(failed)?).map_err(failed)
}

/// All of it, up to what is surely too much.
fn take(from: impl Read) -> std::io::Result<Secret> {
    // Large enough from the beginning: what is moved is not wiped where it was.
    let mut bytes = Vec::with_capacity(BYTES_MAX + 1);
    from.take(BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    let exact = Secret::new(bytes.clone());
    drop(Secret::new(bytes));
    Ok(exact)
}

fn printed_by(command: &str) -> Result<Secret> {
    let failed = || Error::failed("the key command failed");
    let child = Command::new("/bin/sh")
        .arg("-c")
        .arg(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|e| failed().because(e))?;
    let (sender, printed) = channel();
    if let Some(out) = child.stdout.take() {
        // Nobody may be waiting for it any more.
        std::thread::spawn(move || drop(sender.send(take(out))));
    }
    let deadline = Instant::now() + COMMAND_MAX;
    let printed = printed.recv_timeout(COMMAND_MAX);
    let is_too_much = |printed: &Secret| printed.bytes().len() > BYTES_MAX;
    let status = loop {
        let ended = child.try_wait().map_err(|e| failed().because(e))?;
        match ended {
            Some(status) => break Some(status),
            None if Instant::now() >= deadline => break None,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let Some(status) = status else {
        // It may end just now.
        let _ = child.kill().and_then(|()| child.wait());
        return Err(failed().because(format!("it has not ended within {COMMAND_MAX:?}")));
    };
    match printed {
        // It was not heard to its end.
        Ok(Ok(printed)) if is_too_much(&printed) => Ok(printed),
        _ if !status.success() => Err(failed().because(status.to_string())),
        Ok(printed) => printed.map_err(|e| failed().because(e)),
        Err(e) => Err(failed().because(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(place: KeyPlace) -> Result<Vec<u8>> {
        KeyGiven::from_place(place).material("data").map(|material| match material {
            Material::Passphrase(secret) | Material::Bytes(secret) => secret.bytes().to_vec(),
        })
    }

    #[test]
    fn what_is_too_short_or_missing_is_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let refused = |place| bytes_of(place).unwrap_err().to_string();
        assert!(refused(KeyPlace::File(file.clone())).contains("No such file"));
        std::fs::write(&file, [7; 31]).unwrap();
        assert!(refused(KeyPlace::File(file.clone())).contains("has 31 bytes"));
        std::fs::write(&file, [7; 32]).unwrap();
        assert_eq!(bytes_of(KeyPlace::File(file.clone())).unwrap(), [7; 32]);
        let cat = KeyPlace::Command(format!("cat {}", file.display()));
        assert_eq!(bytes_of(cat).unwrap(), [7; 32]);
        assert!(refused(KeyPlace::Command("head -c 99 /dev/zero; exit 3".into())).contains("3"));
        assert!(refused(KeyPlace::Command("yes".into())).contains("no key"));
        std::fs::write(&file, "correct horse\r\n").unwrap();
        assert_eq!(bytes_of(KeyPlace::Passphrase(file.clone())).unwrap(), b"correct horse");
        std::fs::write(&file, "short\n").unwrap();
        assert!(refused(KeyPlace::Passphrase(file)).contains("at least 8"));
    }

    #[test]
    fn the_answer_is_not_written_down() {
        let given = KeyGiven::answered(Secret::new(b"correct horse".to_vec()));
        let text = serde_json::to_string(&given).unwrap();
        assert_eq!(text, "\"asked\"");
        assert_eq!(serde_json::from_str::<KeyGiven>(&text).unwrap().answer(), None);
    }
}
