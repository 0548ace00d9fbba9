//! SQLite at work, and a ledger of what it committed, kept outside of it.

use crate::world::{arg, tool};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::Sender;

/// How SQLite keeps its transactions atomic.
#[derive(Clone, Copy, Debug)]
pub enum Journal {
    Wal,
    Rollback,
}

/// Numbered transactions, one after the other. Each writes a line of its own number and moves an
/// amount between two accounts.
#[derive(Default)]
pub struct Bookkeeper {
    /// Transactions that must be there.
    committed: u64,
    /// The newest transaction that was begun.
    begun: u64,
}

const ACCOUNTS: u64 = 50;

impl Bookkeeper {
    /// Commits transactions until that fails; tells of the first. Returns how many were.
    pub fn keep(&mut self, database: &Path, journal: Journal, first: &Sender<()>) -> u64 {
        let before = self.committed;
        let mut program = Command::new("sqlite3");
        program.args(["-batch", "-bail"]).arg(database);
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = program.spawn().expect("sqlite3 is missing: install the package sqlite3");
        let mut asked = child.stdin.take().unwrap();
        let mut told = BufReader::new(child.stdout.take().unwrap()).lines();
        let mode = match journal {
            Journal::Wal => "wal",
            Journal::Rollback => "delete",
        };
        // EXTRA: a commit is durable whatever the journal; FULL is not with a rollback journal.
        let begin = format!(
            "PRAGMA journal_mode={mode}; PRAGMA synchronous=EXTRA; \
             CREATE TABLE IF NOT EXISTS book(n INTEGER PRIMARY KEY, line TEXT); \
             CREATE TABLE IF NOT EXISTS account(id INTEGER PRIMARY KEY, amount INTEGER);\n"
        );
        let mut told_all = asked.write_all(begin.as_bytes()).is_ok();
        while told_all {
            self.begun += 1;
            told_all = asked.write_all(transaction(self.begun).as_bytes()).is_ok();
            let done = format!("done {}", self.begun);
            told_all &= told.by_ref().map_while(Result::ok).any(|line| line == done);
            if told_all {
                self.committed = self.begun;
                if self.committed == before + 1 {
                    first.send(()).unwrap();
                }
            }
        }
        drop(asked);
        child.wait().unwrap();
        self.committed - before
    }

    /// The database is sound and holds exactly a prefix, of all that was committed at least. Returns
    /// how many transactions it holds.
    pub fn judge(&mut self, database: &Path) -> u64 {
        if !database.exists() {
            assert_eq!(self.committed, 0, "the database is gone");
            return 0;
        }
        let ask = |question: &str| tool("sqlite3", "sqlite3", &["-batch", arg(database), question]);
        assert_eq!(ask("PRAGMA integrity_check;").trim(), "ok");
        let tables = ask("SELECT count(*) FROM sqlite_master WHERE type = 'table';");
        if tables.trim() != "2" {
            assert_eq!(self.committed, 0, "tables are gone");
            return 0;
        }
        let told = ask("SELECT count(*), coalesce(max(n), 0), coalesce(sum(line = \
                        'transaction ' || n || ' ' || hex(zeroblob(n % 700))), 0) FROM book; \
                        SELECT coalesce(sum(amount), 0), count(*) FROM account;");
        let numbers: Vec<u64> =
            told.split(['|', '\n']).filter_map(|number| number.trim().parse().ok()).collect();
        let [count, newest, whole, balance, _] = numbers[..] else { panic!("{told}") };
        assert!(count == newest && whole == count, "a transaction is missing or torn: {told}");
        assert_eq!(balance, 0, "half of a transaction is there");
        let expected = self.committed..=self.begun;
        assert!(expected.contains(&newest), "{newest} transactions, of {expected:?}");
        (self.committed, self.begun) = (newest, newest);
        newest
    }
}

fn transaction(number: u64) -> String {
    let (from, to) = (number % ACCOUNTS, (number * 7 + 3) % ACCOUNTS);
    let add = |id: u64, sign: &str| {
        format!(
            "INSERT INTO account VALUES({id}, {sign}{number}) \
             ON CONFLICT(id) DO UPDATE SET amount = amount + excluded.amount;"
        )
    };
    format!(
        "BEGIN; INSERT INTO book VALUES({number}, \
         'transaction {number} ' || hex(zeroblob({number} % 700))); {} {} COMMIT; \
         SELECT 'done {number}';\n",
        add(from, "-"),
        add(to, "")
    )
}
