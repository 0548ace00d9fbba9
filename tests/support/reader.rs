//! The independent reader of the on-store format, `scripts/reader`, as a program.

use std::path::Path;
use std::process::Command;

/// What the reader did.
#[derive(Debug)]
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// The command that runs the reader.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new("/usr/bin/python3");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/reader");
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(script).args(args);
    command
}

/// Runs it.
pub fn run(mut command: Command) -> Answer {
    let done = command.output().expect("python3 is there: scripts/bootstrap.sh installs it");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = done.status.code().expect("not killed");
    let answer = Answer { code, out: text(done.stdout), err: text(done.stderr) };
    assert!(!answer.err.contains("Traceback"), "the reader broke: {answer:?}");
    answer
}
