//! Certificates made for a test: authorities, servers and clients, good ones and bad ones.
//!
//! Directories hold them under the names that QEMU and libnbd know.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Valid {
    Now,
    NoLonger,
    NotYet,
}

/// Who signs.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

fn params(name: &str, hosts: &[&str], valid: Valid) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).unwrap();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    let (from, to) = match valid {
        Valid::Now => (2020, 2090),
        Valid::NoLonger => (2020, 2021),
        Valid::NotYet => (2090, 2095),
    };
    params.not_before = date_time_ymd(from, 1, 1);
    params.not_after = date_time_ymd(to, 1, 1);
    params
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = params(name, &[], Valid::Now);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn signed(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Pair {
        // QEMU insists on the second.
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap().pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    /// Of a server at 127.0.0.1.
    pub fn server(&self, valid: Valid) -> Pair {
        let params = params("a server", &["localhost", "127.0.0.1"], valid);
        self.signed(params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// Of a client called `name`.
    pub fn client(&self, name: &str, valid: Valid) -> Pair {
        self.signed(params(name, &[], valid), ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// Of a client with a common name and one for the DNS.
    pub fn client_at(&self, name: &str, host: &str) -> Pair {
        self.signed(params(name, &[host], Valid::Now), ExtendedKeyUsagePurpose::ClientAuth)
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Lets clients in `dir` trust this authority, or a server there its clients.
    pub fn write(&self, dir: &Path) {
        fs::write(dir.join("ca-cert.pem"), self.pem()).unwrap();
    }
}

/// A certificate and its key.
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Pair {
    /// As what a `server` or a `client` has.
    pub fn write(&self, dir: &Path, whose: &str) {
        let key = dir.join(format!("{whose}-key.pem"));
        fs::write(dir.join(format!("{whose}-cert.pem")), &self.certificate).unwrap();
        fs::write(&key, &self.key).unwrap();
        fs::set_permissions(key, PermissionsExt::from_mode(0o600)).unwrap();
    }
}

/// A directory of its own below `dir`.
pub fn folder(dir: &Path, name: &str) -> PathBuf {
    let folder = dir.join(name);
    fs::create_dir(&folder).unwrap();
    folder
}
