//! Generated certificates: a CA, a server, and client directories in the layout of libnbd and qemu.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(missing_docs, clippy::unwrap_used, reason = "test code")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, IsCa,
    Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// CA, with a directory for its certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    pub dir: tempfile::TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let this = Self { issuer: Issuer::new(params, key), pem, dir: tempfile::tempdir().unwrap() };
        std::fs::write(this.ca(), &this.pem).unwrap();
        this
    }

    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca-cert.pem")
    }

    /// Signs a certificate; returns it and its key in PEM format.
    pub fn sign(&self, common_name: &str, alternative_names: &[&str], is_expired: bool) -> (String, String) {
        let names: Vec<String> = alternative_names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.serial_number = Some(serial(common_name));
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = if is_expired { date_time_ymd(2021, 1, 1) } else { date_time_ymd(2049, 1, 1) };
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Writes a CRL that revokes the certificates with these names; returns its path.
    pub fn revoke(&self, names: &[&str]) -> PathBuf {
        let revoked = names.iter().map(|name| RevokedCertParams {
            serial_number: serial(name),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            // Outdated: the server applies outdated CRLs too.
            next_update: date_time_ymd(2021, 2, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.dir.path().join("crl.pem");
        std::fs::write(&path, list.signed_by(&self.issuer).unwrap().pem().unwrap()).unwrap();
        path
    }

    /// Writes the server's certificate and key; returns their paths.
    pub fn server(&self) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.sign("the server", &["localhost", "127.0.0.1"], false);
        let paths = (self.dir.path().join("server-cert.pem"), self.dir.path().join("server-key.pem"));
        std::fs::write(&paths.0, certificate).unwrap();
        write_key(&paths.1, &key);
        paths
    }

    /// Creates a directory with the CA, and certificate and key of a client.
    pub fn client_dir(&self, name: &str, is_expired: bool) -> PathBuf {
        let dir = self.dir.path().join(format!("client-{name}"));
        std::fs::create_dir_all(&dir).unwrap();
        let (certificate, key) = self.sign(name, &[], is_expired);
        std::fs::write(dir.join("ca-cert.pem"), &self.pem).unwrap();
        std::fs::write(dir.join("client-cert.pem"), certificate).unwrap();
        write_key(&dir.join("client-key.pem"), &key);
        dir
    }

    /// Creates a directory with the CA only.
    pub fn anonymous_dir(&self) -> PathBuf {
        let dir = self.dir.path().join("anonymous");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("ca-cert.pem"), &self.pem).unwrap();
        dir
    }

    /// Returns the configuration of a rustls client with the certificate in `dir`, or without one.
    pub fn client_config(&self, dir: Option<&Path>) -> Arc<rustls::ClientConfig> {
        self.client_config_of(dir, &[&rustls::version::TLS13, &rustls::version::TLS12])
    }

    pub fn client_config_of(
        &self,
        dir: Option<&Path>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Arc<rustls::ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match dir {
            None => builder.with_no_client_auth(),
            Some(dir) => {
                let certificate = CertificateDer::from_pem_file(dir.join("client-cert.pem")).unwrap();
                let key = PrivateKeyDer::from_pem_file(dir.join("client-key.pem")).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        })
    }
}

/// Returns the serial number of a certificate, derived from its name.
fn serial(name: &str) -> SerialNumber {
    SerialNumber::from_slice(&name.as_bytes()[..name.len().min(20)])
}

fn write_key(path: &Path, key: &str) {
    std::fs::write(path, key).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
