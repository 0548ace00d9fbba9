//! Who may use which export: rules about the names in clients' certificates.
//!
//! A rule is `CLIENT=EXPORT[:ro][,EXPORT[:ro]...]`. CLIENT is a name that a certificate carries, or
//! `*` for every client; EXPORT is the name of an export, or `*` for all of them; `:ro` lets it only
//! be read. Several rules about one client add up, and where one of them allows writes, writes are
//! allowed. Who is in no rule may use nothing.
//!
//! Contract: parsing is pure and total. A rule that cannot be read is an error, never a rule that
//! allows something else.

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Stands for every client, or for every export.
const ANY: &str = "*";

/// How an export may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    /// Only read.
    ReadOnly,
    /// As far as the export allows.
    Full,
}

/// Exports, or `*`, and how they may be used.
type Grants = BTreeMap<String, Access>;

/// The rules of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    by_client: BTreeMap<String, Grants>,
}

/// What one client may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Granted {
    /// Everything: the server has no rules.
    Everything,
    /// What the rules say.
    Only(Grants),
}

impl Rights {
    /// Adds what `rule` says. Returns the exports that it names.
    ///
    /// Errors: [`Usage`](crate::error::ErrorKind::Usage) for what is no rule.
    pub fn add<'a>(&mut self, rule: &'a str) -> Result<Vec<&'a str>> {
        let wrong = |why: &str| {
            Error::usage(format!("{rule:?} does not say who may use what: {why}"))
                .hint("write CLIENT=EXPORT[:ro],... or CLIENT=*")
        };
        // The last one: names of clients may hold one, those of volumes cannot.
        let (client, exports) = rule.rsplit_once('=').ok_or_else(|| wrong("it has no \"=\""))?;
        let client = client.trim();
        if client.is_empty() {
            return Err(wrong("no client is named"));
        }
        if client.contains(char::is_control) {
            return Err(wrong("the name of the client holds a control character"));
        }
        let mut named = Vec::new();
        let mut grants = Grants::new();
        for item in exports.split(',').map(str::trim) {
            let (export, access) = match item.strip_suffix(":ro") {
                Some(export) => (export, Access::ReadOnly),
                None => (item, Access::Full),
            };
            if export.is_empty() {
                return Err(wrong("no export is named"));
            }
            if export != ANY && export.contains([':', '*', ' ']) {
                return Err(wrong("an export is NAME, NAME@SNAP or *, and behind it only :ro"));
            }
            if export != ANY {
                named.push(export);
            }
            allow(&mut grants, export, access);
        }
        let known = self.by_client.entry(client.to_owned()).or_default();
        grants.iter().for_each(|(export, access)| allow(known, export, *access));
        Ok(named)
    }

    /// Adds the rules of a file: one a line, with empty lines and lines that begin with `#`.
    /// `place` is what the file is called. Errors: as [`Rights::add`], with the line.
    pub(super) fn add_lines(&mut self, place: &str, text: &str) -> Result<()> {
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                self.add(line).map_err(|e| e.context(format!("{place}, line {}", number + 1)))?;
            }
        }
        Ok(())
    }

    /// What a client may use whose certificate carries these names.
    pub(super) fn of(&self, names: &[String]) -> Granted {
        let mut grants = Grants::new();
        let known = names.iter().map(String::as_str).filter(|name| *name != ANY);
        for name in known.chain([ANY]) {
            for (export, access) in self.by_client.get(name).into_iter().flatten() {
                allow(&mut grants, export, *access);
            }
        }
        Granted::Only(grants)
    }
}

fn allow(grants: &mut Grants, export: &str, access: Access) {
    let granted = grants.entry(export.to_owned()).or_insert(access);
    *granted = access.max(*granted);
}

impl Granted {
    /// How the export called `name` may be used; `None`: not at all.
    pub(super) fn access(&self, name: &str) -> Option<Access> {
        match self {
            Granted::Everything => Some(Access::Full),
            Granted::Only(grants) => grants.get(name).max(grants.get(ANY)).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    fn rights(rules: &[&str]) -> Rights {
        let mut rights = Rights::default();
        rules.iter().for_each(|rule| drop(rights.add(rule).unwrap()));
        rights
    }

    fn access(rights: &Rights, client: &str, export: &str) -> Option<Access> {
        rights.of(&[client.to_owned()]).access(export)
    }

    #[test]
    fn rules_add_up() {
        let rights = rights(&["vm1=a,b:ro", "vm1=b@monday", "backup=*:ro", "*=golden:ro", "o=u=a"]);
        assert_eq!(access(&rights, "vm1", "a"), Some(Access::Full));
        assert_eq!(access(&rights, "vm1", "b"), Some(Access::ReadOnly));
        assert_eq!(access(&rights, "vm1", "b@monday"), Some(Access::Full));
        assert_eq!(access(&rights, "vm1", "c"), None);
        assert_eq!(access(&rights, "vm1", "golden"), Some(Access::ReadOnly));
        assert_eq!(access(&rights, "backup", "c"), Some(Access::ReadOnly));
        assert_eq!(access(&rights, "vm2", "a"), None);
        assert_eq!(access(&rights, "o=u", "a"), Some(Access::Full));
        assert_eq!(rights.of(&[]).access("a"), None);
        assert_eq!(rights.of(&[]).access("golden"), Some(Access::ReadOnly));
        let both = rights.of(&["vm2".to_owned(), "vm1".to_owned()]);
        assert_eq!(both.access("a"), Some(Access::Full));
        assert_eq!(Granted::Everything.access("a"), Some(Access::Full));
    }

    #[test]
    fn the_wider_of_two_grants_counts() {
        for rules in [["c=a:ro", "c=a"], ["c=a", "c=a:ro"], ["c=*:ro", "c=a"], ["*=a:ro", "c=*"]] {
            assert_eq!(access(&rights(&rules), "c", "a"), Some(Access::Full), "{rules:?}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for rule in ["", "a", "=a", "c=", "c=a,", "c=a:rw", "c=:ro", "c=a*", "c=a b", "c\nd=a"] {
            let error = Rights::default().add(rule).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{rule:?}");
        }
        let text = "# who\n\nvm1=a\n vm2 = b:ro \nvm3\n";
        let error = Rights::default().add_lines("FILE", text).unwrap_err().to_string();
        assert!(error.starts_with("FILE, line 5: \"vm3\" does not say who"), "{error}");
        let mut good = Rights::default();
        good.add_lines("FILE", &text[..text.len() - 4]).unwrap();
        assert_eq!(good, rights(&["vm1=a", "vm2=b:ro"]));
    }

    proptest! {
        #[test]
        fn any_text_is_a_rule_or_refused(rule in "\\PC{0,40}|[a-z*:=, ]{0,30}") {
            let mut rights = Rights::default();
            if let Ok(named) = rights.add(&rule) {
                prop_assert!(named.iter().all(|export| rule.contains(export)));
                prop_assert_eq!(rights.by_client.len(), 1);
            } else {
                prop_assert_eq!(rights, Rights::default());
            }
        }
    }
}
