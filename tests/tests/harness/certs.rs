//! Certificates of a private certificate authority.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, date_time_ymd,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// A certificate authority with a directory for its certificates and keys.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Authority {
    /// Creates an authority with its files in this directory.
    pub fn new(dir: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "an authority for tests");
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        fs::create_dir_all(dir).expect("a directory");
        fs::write(dir.join("ca.pem"), pem).expect("a file");
        Self { issuer: Issuer::new(params, key), dir: dir.to_owned() }
    }

    /// The authority's own certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Signs a certificate for a common name and alternative names. Returns the paths of the certificate and
    /// its key.
    pub fn sign(&self, name: &str, alternative_names: &[&str]) -> (PathBuf, PathBuf) {
        self.sign_until(2049, name, alternative_names)
    }

    /// As [`sign`](Self::sign), for a certificate that expires at the start of this year.
    pub fn sign_until(&self, year: i32, name: &str, alternative_names: &[&str]) -> (PathBuf, PathBuf) {
        let names: Vec<String> = alternative_names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let pem = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        let paths = (self.dir.join(format!("{name}.pem")), self.dir.join(format!("{name}.key")));
        fs::write(&paths.0, pem).expect("a file");
        fs::write(&paths.1, key.serialize_pem()).expect("a file");
        fs::set_permissions(&paths.1, fs::Permissions::from_mode(0o600)).expect("its mode");
        paths
    }
}
