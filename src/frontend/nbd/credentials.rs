//! The files that TLS needs: certificates, the key, the rules about clients.
//!
//! Contract: [`load`] gives a configuration that works, or one error that names the file. The key is
//! refused where others than its owner and group may read it, or others than its owner change it. Its
//! bytes go to the TLS library and into no message.

use super::rights::Rights;
use super::tls::TlsOptions;
use crate::error::{Error, Result};
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::{DirectoryString, GeneralName};

/// The longest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Bits of a key file's mode that must not be set.
const TOO_OPEN: u32 = 0o027;

/// The object identifier of a common name.
const COMMON_NAME: &str = "2.5.4.3";

/// What a handshake goes by.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) config: Arc<ServerConfig>,
    /// Without rules every client may use everything.
    pub(super) rights: Option<Arc<Rights>>,
}

/// Reads all files. Errors: usage, for a file that is not what it should be.
pub(super) fn load(options: &TlsOptions) -> Result<Credentials> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::failed("cannot set up TLS").because(e))?;
    let builder = match &options.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(authorities(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|e| unusable(path, e))?)
        }
    };
    let (chain, key) = (certificates(&options.certificate)?, key(&options.key)?);
    let mut config = builder.with_single_cert(chain, key).map_err(|e| {
        let (certificate, key) = (&options.certificate, &options.key);
        Error::usage(format!("the key {key:?} and the certificate {certificate:?} do not work"))
            .because(e)
            .hint("give the key that the certificate was made for")
    })?;
    // Every connection shows its certificate anew: one that has expired meanwhile is noticed.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Credentials { config: Arc::new(config), rights: rights(options)? })
}

fn rights(options: &TlsOptions) -> Result<Option<Arc<Rights>>> {
    if options.allow.is_empty() && options.allow_file.is_none() {
        return Ok(None);
    }
    if options.client_ca.is_none() || !options.required {
        let message = "who may use what is told by the certificates of clients";
        return Err(Error::usage(message).hint("require TLS, and name the authority of clients"));
    }
    let mut rights = Rights::default();
    for rule in &options.allow {
        rights.add(rule)?;
    }
    if let Some(path) = &options.allow_file {
        let bytes = contents(&open(path)?, path)?;
        let text = String::from_utf8(bytes).map_err(|e| unusable(path, e))?;
        rights.add_lines(&format!("{path:?}"), &text)?;
    }
    Ok(Some(Arc::new(rights)))
}

fn unusable(path: &Path, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::usage(format!("cannot use {path:?}")).because(cause)
}

fn open(path: &Path) -> Result<File> {
    // A pipe must not be waited for.
    let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|e| unusable(path, e))?;
    let metadata = file.metadata().map_err(|e| unusable(path, e))?;
    if !metadata.is_file() {
        return Err(Error::usage(format!("cannot use {path:?}: it is no file")));
    }
    Ok(file)
}

fn contents(file: &File, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| unusable(path, e))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::usage(format!("cannot use {path:?}: it is longer than 1 MiB")));
    }
    Ok(bytes)
}

/// The certificates of a PEM file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = contents(&open(path)?, path)?;
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|e| unusable(path, e))?;
    if found.is_empty() {
        let message = format!("there is no certificate in {path:?}");
        return Err(Error::usage(message).hint("certificates are PEM files"));
    }
    Ok(found)
}

fn authorities(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| unusable(path, e))?;
    }
    Ok(roots)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let file = open(path)?;
    let mode = file.metadata().map_err(|e| unusable(path, e))?.mode() & 0o7777;
    if mode & TOO_OPEN != 0 {
        let message = format!("the key {path:?} is open to others (mode {mode:04o})");
        return Err(Error::usage(message).hint("let only its owner read it: chmod 600"));
    }
    // The error of the parser is not passed on: it may quote what it read.
    PrivateKeyDer::from_pem_slice(&contents(&file, path)?).map_err(|_| {
        Error::usage(format!("there is no private key in {path:?}"))
            .hint("give a PEM file that is not locked by a passphrase")
    })
}

/// The names that a certificate carries: its common name and its DNS names. None where it cannot be
/// read, or where it has several common names, of which anyone could be meant.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = Certificate::from_der(certificate) else { return Vec::new() };
    let certificate = certificate.tbs_certificate();
    let common = certificate.subject().iter().filter(|item| item.oid.to_string() == COMMON_NAME);
    let common: Vec<_> = common.map(|item| DirectoryString::try_from(&item.value)).collect();
    let mut names: Vec<String> = match &common[..] {
        [] => Vec::new(),
        [Ok(name)] => vec![name.value().into_owned()],
        _ => return Vec::new(),
    };
    if let Ok(Some((_, alternative))) = certificate.get_extension::<SubjectAltName>() {
        names.extend(alternative.0.iter().filter_map(|name| match name {
            GeneralName::DnsName(name) => Some(name.as_str().to_owned()),
            _ => None,
        }));
    }
    names
}
