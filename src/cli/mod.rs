//! The command line: parse, run one verb, print, exit code.
//!
//! Results go to standard output, one document each; everything else to standard error. An error
//! is one sentence, `objblk: ...`; its kind decides the exit code.

mod args;
mod attach;
mod bench;
mod catalogue;
mod check;
mod clone;
mod clone_past;
mod confirm;
mod copy;
mod delete;
mod diff;
pub mod duration;
mod export;
mod export_diff;
mod gc;
mod import;
mod import_diff;
mod inspect;
mod interrupt;
mod journal;
mod key;
mod logging;
mod moment;
mod mount;
mod owner;
mod path;
mod pool;
mod recover;
mod render;
mod repair;
mod replace_store;
mod replicate;
mod request;
mod retain;
mod schedule;
mod serve;
mod snapshot;
mod status;
mod stores;
mod trash;
mod view;
mod volume;

pub use crate::size;

use crate::daemon::{Serves, shield};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::backend::Backend;
use crate::pool::{VolumeName, VolumeSpec};
use crate::seal::{KeyGiven, KeyPlace, ask, has_terminal};
use crate::settings::{Endpoints, Location, Named};
use args::{Cli, Global, Journal, Pool, Serve, Trash, Verb};
use clap::{CommandFactory, Parser};
use logging::Logging;
use std::ffi::OsString;
use std::process::ExitCode;

/// Threads that run what waits; the frontends bring their own for what must be fast.
const WORKERS: usize = 2;

/// Runs the program with these arguments (the first is its name).
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some(code) = crate::frontend::ublk::errand(arguments.iter().cloned()) {
        return code;
    }
    logging::on_panic();
    let done = match Cli::try_parse_from(arguments) {
        Ok(cli) => execute(cli),
        Err(e) => refuse(&e),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("objblk: {e}");
            ExitCode::from(e.kind().exit_code())
        }
    }
}

/// Help and version are printed; anything else becomes one sentence.
fn refuse(e: &clap::Error) -> Result<()> {
    use clap::error::ErrorKind as Kind;
    let text = e.render().to_string();
    match e.kind() {
        Kind::DisplayHelp | Kind::DisplayVersion => return render::print(text.trim_end()),
        Kind::DisplayHelpOnMissingArgumentOrSubcommand => {
            eprintln!("{}", text.trim_end());
            return Err(Error::usage("a verb is missing").hint("the list above shows them"));
        }
        _ => {}
    }
    let first = text.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    Err(Error::usage(words.join(" ")).hint("`objblk --help` shows what there is"))
}

fn execute(cli: Cli) -> Result<()> {
    let logging = Logging::start(cli.global.verbose);
    if let Some(what) = serves(&cli.verb) {
        shield(what);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(|e| Error::failed("cannot start threads").because(e))?;
    let done = runtime.block_on(dispatch(cli.verb, &Context { global: cli.global }, logging));
    // A thread that is stuck in the kernel must not keep the program.
    runtime.shutdown_background();
    done
}

/// What this process is to serve itself.
fn serves(verb: &Verb) -> Option<Serves> {
    match verb {
        Verb::Attach(attach) if attach.foreground => Some(Serves::BlockDevice),
        Verb::Target | Verb::Supervise => Some(Serves::BlockDevice),
        Verb::Mount(mount) if mount.foreground => Some(Serves::Others),
        Verb::MountTarget | Verb::Serve(_) => Some(Serves::Others),
        _ => None,
    }
}

async fn dispatch(verb: Verb, context: &Context, logging: Logging) -> Result<()> {
    match verb {
        Verb::Create(create) => volume::create(context, create).await,
        Verb::List => catalogue::list(context).await,
        Verb::Info { name } => catalogue::info(context, &name.parse()?).await,
        Verb::Attach(attach) => attach::attach(context, attach).await,
        Verb::Detach { what, force } => attach::detach(context, &what, force).await,
        Verb::Recover { what } => recover::recover(context, what.as_deref()).await,
        Verb::Serve(Serve::Nbd(serve)) => serve::nbd(context, *serve).await,
        Verb::Serve(Serve::VhostUser(serve)) => serve::vhost_user(context, *serve).await,
        Verb::Mount(mount) => mount::mount(context, mount).await,
        Verb::Umount(umount) => mount::umount(context, umount).await,
        Verb::Journal(Journal::List { journal }) => journal::list(context, &journal).await,
        Verb::Journal(Journal::Discard { name, journal, yes }) => {
            journal::discard(context, &name, &journal, yes).await
        }
        Verb::Status { name } => status::status(context, name.as_deref()).await,
        Verb::Check(check) => check::check(context, check).await,
        Verb::Inspect { what } => inspect::inspect(context, &what).await,
        Verb::Locate { name, at } => inspect::locate(context, &name.parse()?, &at).await,
        Verb::Bench(bench) => bench::bench(context, bench).await,
        Verb::Gc { name, full } => gc::gc(context, &name.parse()?, full).await,
        Verb::Snapshot(verb) => snapshot::dispatch(context, verb).await,
        Verb::Clone { of, at, new } => {
            clone::clone(context, &of.parse()?, at.as_deref(), &new.parse()?).await
        }
        Verb::Children { of } => clone::children(context, &of.parse()?).await,
        Verb::Flatten { name } => clone::flatten(context, &name.parse()?).await,
        Verb::Import(import) => import::import(context, import).await,
        Verb::Replicate(replicate) => replicate::replicate(context, *replicate).await,
        Verb::Promote { name } => replicate::promote(context, &name).await,
        Verb::Export(export) => export::export(context, export).await,
        Verb::Diff(diff) => diff::diff(context, diff).await,
        Verb::ExportDiff(export) => export_diff::export_diff(context, export).await,
        Verb::ImportDiff(import) => import_diff::import_diff(context, import).await,
        Verb::Copy(copy) => copy::copy(context, copy).await,
        Verb::Resize { name, size, shrink } => {
            volume::resize(context, &name.parse()?, &size, shrink).await
        }
        Verb::Request { name, id } => {
            request::request(context, &name.parse()?, id.as_deref()).await
        }
        Verb::Retain { name, time } => retain::retain(context, &name.parse()?, &time).await,
        Verb::Rename { name, new } => volume::rename(context, &name, &new).await,
        Verb::Delete(delete) => delete::delete(context, delete).await,
        Verb::Trash(Trash::List { orphans }) => trash::list(context, orphans).await,
        Verb::Trash(Trash::Restore { what, new }) => {
            trash::restore(context, &what, new.as_deref()).await
        }
        Verb::Trash(Trash::Empty(empty)) => trash::empty(context, empty).await,
        Verb::Key(verb) => key::dispatch(context, verb).await,
        Verb::Path(verb) => path::dispatch(context, verb).await,
        Verb::Pool(Pool::Init { create_bucket, unsafe_no_fencing }) => {
            pool::init(context, create_bucket, unsafe_no_fencing).await
        }
        Verb::Pool(Pool::Status) => pool::status(context).await,
        Verb::Pool(Pool::Stores(verb)) => stores::dispatch(context, verb).await,
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "objblk", &mut script);
            render::print(String::from_utf8_lossy(&script).trim_end())
        }
        Verb::Supervise => {
            let arguments = attach::background_arguments(context, "target");
            crate::daemon::supervise(&arguments, || logging.for_background()).await
        }
        Verb::MountTarget => crate::daemon::mount::run_child(|| logging.for_background()).await,
        Verb::Target => crate::daemon::run_child(|| logging.for_background()).await,
    }
}

/// What every verb needs.
#[derive(Debug)]
struct Context {
    global: Global,
}

impl Context {
    /// Where the pool is.
    fn location(&self) -> Result<Location> {
        let global = &self.global;
        let flags = Named {
            store: global.store.clone(),
            bucket: global.bucket.clone(),
            prefix: global.prefix.clone(),
            endpoint_url: Endpoints(global.endpoint_url.clone()),
            region: global.region.clone(),
            path_selector: global.path_selector.as_deref().map(str::parse).transpose()?,
            no_path_retry: global.no_path_retry.clone(),
            path_failback: global.path_failback.clone(),
        };
        Location::find(flags, global.config.as_deref())
    }

    /// The address of the store that the flags name, if they name one.
    fn named_store(&self) -> Result<Option<String>> {
        let named = self.global.store.is_some() || self.global.bucket.is_some();
        if named { self.location().map(|location| Some(location.url)) } else { Ok(None) }
    }

    /// The pool.
    async fn open(&self) -> Result<Backend> {
        let (url, s3) = self.location()?.parts()?;
        Ok(Backend::open(&url, &s3).await?.with_key(self.given()?))
    }

    /// What opens encrypted volumes: what the flags say, or whoever sits at the terminal; `None` where there is
    /// neither.
    fn given(&self) -> Result<Option<KeyGiven>> {
        let asked = || has_terminal().then(|| KeyGiven::from_place(KeyPlace::Asked));
        Ok(self.global.key.key()?.or_else(asked))
    }

    /// The same for a process in the background, which can ask nobody.
    async fn given_for(&self, name: &VolumeName) -> Result<Option<KeyGiven>> {
        let given = self.global.key.key()?;
        if given.is_some() || !has_terminal() {
            return Ok(given);
        }
        let pool = self.open().await?.pool.with_given(None);
        match pool.lookup(name).await {
            Ok((_, volume)) if volume.is_encrypted() => {
                let answer = ask(&format!("Passphrase of {name}: "))?;
                Ok(Some(KeyGiven::answered(answer)))
            }
            // What is wrong with it is told by whoever serves it.
            _ => Ok(None),
        }
    }

    /// Prints `document`, or in human form the text that `text` gives.
    fn show<T: serde::Serialize>(&self, document: &T, text: impl FnOnce() -> String) -> Result<()> {
        if self.global.json { render::json(document) } else { render::print(&text()) }
    }
}

/// The names, each parsed.
fn names(texts: &[String]) -> Result<Vec<VolumeSpec>> {
    texts.iter().map(|text| text.parse()).collect()
}

/// The first failure of a listing, which decides its exit code.
fn damaged(what: &str, e: &Error) -> Error {
    let kind = match e.kind() {
        ErrorKind::Failed => ErrorKind::Corrupt,
        kind => kind,
    };
    Error::new(kind, format!("{what}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mistakes_become_one_sentence() {
        let refused = |arguments: &[&str]| {
            let e = Cli::try_parse_from(arguments).unwrap_err();
            let e = refuse(&e).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Usage);
            e.to_string()
        };
        let text = refused(&["objblk", "create", "a"]);
        assert_eq!(
            text,
            "the following required arguments were not provided: --size <S>; \
             `objblk --help` shows what there is"
        );
        let text = refused(&["objblk", "list", "--frobnicate"]);
        assert!(text.starts_with("unexpected argument '--frobnicate' found;"), "{text}");
        assert!(!refused(&["objblk", "amount", "x"]).contains('\n'));
    }
}
