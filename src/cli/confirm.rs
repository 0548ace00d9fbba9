use crate::error::{Error, Result};
use std::io::{BufRead, IsTerminal, Write};

/// Asks before something is destroyed, unless `yes`. Errors: usage, where there is no terminal to
/// ask on; failed, where the answer is not yes.
pub(super) fn confirm(question: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(Error::usage(format!("{question} needs a confirmation"))
            .hint("add --yes: there is no terminal to ask on"));
    }
    eprint!("{question}, are you sure? [y/N] ");
    let failed = |e| Error::failed("cannot ask").because(e);
    std::io::stderr().flush().map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Error::failed("nothing was done, as the answer was not yes")),
    }
}
