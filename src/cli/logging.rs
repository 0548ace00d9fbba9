//! Logs and panics: what goes to standard error beside the one sentence.

use std::fmt;
use tracing_subscriber::EnvFilter;

/// What is told unasked. The SDK's own warnings repeat what our one sentence says.
const QUIET: &str =
    "warn,aws_config=error,aws_runtime=error,aws_sdk_s3=error,aws_smithy_runtime=error";

/// The log of this process.
pub(super) struct Logging {
    /// Sets the level of a process that nobody watches.
    raise: Option<Box<dyn FnOnce() + Send>>,
}

impl fmt::Debug for Logging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Logging")
    }
}

impl Logging {
    /// Logs warnings (with `verbose` more) to standard error; `RUST_LOG` has the last word.
    pub(super) fn start(verbose: u8) -> Logging {
        let level = [QUIET, "objblk=info,warn", "objblk=debug,info"];
        let level = level.get(usize::from(verbose)).unwrap_or(&"debug");
        let told = verbose > 0 || std::env::var_os(EnvFilter::DEFAULT_ENV).is_some();
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_target(false)
            .with_ansi(false)
            .with_filter_reloading();
        let handle = log.reload_handle();
        log.init();
        let raise = move || {
            // It fails only where the log is gone.
            let _ = handle.reload(EnvFilter::new("objblk=info,warn"));
        };
        Logging { raise: (!told).then(|| Box::new(raise) as Box<_>) }
    }

    /// From now on nobody sees the log before something went wrong: it tells more.
    pub(super) fn for_background(self) {
        if let Some(raise) = self.raise {
            raise();
        }
    }
}

/// Makes of a panic one line that asks for a report; the backtrace only if asked for.
pub(super) fn on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let what = panic.payload_as_str().unwrap_or("no message");
        let place = panic.location().map(|at| format!(" at {at}")).unwrap_or_default();
        let version = env!("CARGO_PKG_VERSION");
        eprintln!(
            "objblk: internal error{place}: {what}; please report this line (objblk {version})"
        );
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            usual(panic);
        }
    }));
}
