//! TLS of a server, as it was typed.

use crate::error::{Error, Result};
use crate::frontend::nbd::{Rights, TlsOptions};
use crate::pool::VolumeSpec;
use clap::Args;
use std::path::{Path, PathBuf};

/// What there is for TLS.
#[derive(Args, Debug)]
#[command(next_help_heading = "TLS")]
pub(in crate::cli) struct Tls {
    /// Whether clients use TLS: require, all of them (the default where there is a certificate);
    /// allow, whoever wants to; off, none
    #[arg(long = "tls", value_name = "WHEN", value_parser = ["off", "allow", "require"])]
    when: Option<String>,
    /// The server's certificate and those between it and its authority, PEM; read again when it
    /// changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of the certificate, PEM, for nobody else to read
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Refuse clients that have no certificate of this authority, PEM
    #[arg(long, value_name = "FILE", visible_alias = "tls-client-ca", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// The directory of server-cert.pem, server-key.pem and, to refuse clients without a certificate
    /// of it, ca-cert.pem, as QEMU and libnbd name them
    #[arg(long, value_name = "DIR", conflicts_with_all = ["tls_cert", "tls_key", "tls_ca"])]
    tls_certificates: Option<PathBuf>,
    /// Let a client use these volumes only, by a name in its certificate: CLIENT=NAME[:ro],... where
    /// either may be *; again for more; who is not named uses nothing
    #[arg(long, value_name = "RULE")]
    allow: Vec<String>,
    /// A file of such rules, one a line; read again when it changes
    #[arg(long, value_name = "FILE")]
    allow_file: Option<PathBuf>,
}

impl Tls {
    /// True where it was said that there be none.
    pub(in crate::cli) fn is_off(&self) -> bool {
        self.when.as_deref() == Some("off")
    }

    /// What was said, for a server of `volumes`.
    pub(in crate::cli) fn options(&self, volumes: &[VolumeSpec]) -> Result<Option<TlsOptions>> {
        let given = self.files()?;
        let Some((certificate, key, client_ca)) = given.filter(|_| !self.is_off()) else {
            return self.without();
        };
        let required = self.when.as_deref() != Some("allow");
        let mut rights = Rights::default();
        for rule in &self.allow {
            for export in rights.add(rule)? {
                if !volumes.iter().any(|volume| volume.as_str() == export) {
                    let message = format!("--allow {rule:?} names {export}, which is not served");
                    return Err(Error::usage(message).hint("serve it as well, or leave it out"));
                }
            }
        }
        let has_rules = !self.allow.is_empty() || self.allow_file.is_some();
        if has_rules && (client_ca.is_none() || !required) {
            let message = "--allow goes by the certificates of clients";
            return Err(Error::usage(message).hint("give --tls-ca, and leave --tls allow out"));
        }
        let allow_file = self.allow_file.as_deref().map(|p| absolute("--allow-file", p));
        Ok(Some(TlsOptions {
            certificate,
            key,
            client_ca,
            required,
            allow: self.allow.clone(),
            allow_file: allow_file.transpose()?,
        }))
    }

    /// No TLS, if nothing was said that needs some.
    fn without(&self) -> Result<Option<TlsOptions>> {
        let needs = match (self.when.as_deref(), &self.allow[..], &self.allow_file) {
            (Some(when @ ("allow" | "require")), ..) => format!("--tls {when}"),
            (_, [_, ..], _) => "--allow".to_owned(),
            (_, _, Some(_)) => "--allow-file".to_owned(),
            _ => return Ok(None),
        };
        let hint = match self.is_off() {
            true => "leave --tls off out",
            false => "give --tls-cert and --tls-key, or --tls-certificates",
        };
        Err(Error::usage(format!("{needs} needs TLS with a certificate")).hint(hint))
    }

    /// The certificate, the key, and the authority of clients.
    fn files(&self) -> Result<Option<(PathBuf, PathBuf, Option<PathBuf>)>> {
        if let Some(folder) = &self.tls_certificates {
            let folder = absolute("--tls-certificates", folder)?;
            let authority = folder.join("ca-cert.pem");
            let (certificate, key) =
                (folder.join("server-cert.pem"), folder.join("server-key.pem"));
            // Where it cannot be told whether it is there, it is wanted: reading it will say why not.
            let is_there = authority.try_exists().unwrap_or(true);
            return Ok(Some((certificate, key, is_there.then_some(authority))));
        }
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else {
            return Ok(None);
        };
        let authority =
            self.tls_ca.as_deref().map(|path| absolute("--tls-ca", path)).transpose()?;
        let certificate = absolute("--tls-cert", certificate)?;
        Ok(Some((certificate, absolute("--tls-key", key)?, authority)))
    }
}

fn absolute(flag: &str, path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::usage(format!("{flag} is no path")).because(e))
}
