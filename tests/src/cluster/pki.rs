//! The cluster's certificate authority, and a certificate for each part that shows who it is.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A key or certificate could not be made.
    #[error("cannot make the certificate of {name}")]
    Certificate {
        /// Whose.
        name: String,
        /// What was wrong.
        #[source]
        source: rcgen::Error,
    },
    /// It could not be kept.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Who a certificate speaks for.
pub(crate) struct Identity<'a> {
    /// The name of its files.
    pub(crate) file: &'a str,
    /// The user that the API takes the bearer for.
    pub(crate) user: &'a str,
    /// The user's group.
    pub(crate) group: Option<&'a str>,
    /// Names that the bearer serves under.
    pub(crate) names: &'a [&'a str],
    /// Addresses that the bearer serves under.
    pub(crate) addresses: &'a [Ipv4Addr],
}

/// A certificate authority whose files lie in one folder.
pub(crate) struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes an authority in `folder`, which exists: `ca.crt` and `ca.key`, and `sa.key` with `sa.pub`, which sign and prove the
    /// tokens of pods.
    pub(crate) fn create(folder: &Path) -> Result<Self, PkiError> {
        let key = key("ca")?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "ortolan test cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).map_err(certificate_error("ca"))?;
        write(&folder.join("ca.crt"), &certificate.pem())?;
        write(&folder.join("ca.key"), &key.serialize_pem())?;
        let tokens = self::key("sa")?;
        write(&folder.join("sa.key"), &tokens.serialize_pem())?;
        write(&folder.join("sa.pub"), &tokens.public_key_pem())?;
        Ok(Self { folder: folder.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// Writes `FILE.crt` and `FILE.key`, good for showing who one is and for serving.
    pub(crate) fn issue(&self, identity: &Identity<'_>) -> Result<(), PkiError> {
        let key = key(identity.file)?;
        let certificate = identity.params()?.signed_by(&key, &self.issuer).map_err(certificate_error(identity.file))?;
        write(&self.folder.join(format!("{}.crt", identity.file)), &certificate.pem())?;
        write(&self.folder.join(format!("{}.key", identity.file)), &key.serialize_pem())
    }
}

impl Identity<'_> {
    fn params(&self) -> Result<CertificateParams, PkiError> {
        let names: Vec<String> = self.names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).map_err(certificate_error(self.file))?;
        params.distinguished_name.push(DnType::CommonName, self.user);
        if let Some(group) = self.group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.subject_alt_names.extend(self.addresses.iter().map(|address| SanType::IpAddress(IpAddr::V4(*address))));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        Ok(params)
    }
}

fn key(name: &str) -> Result<KeyPair, PkiError> {
    KeyPair::generate().map_err(certificate_error(name))
}

fn write(path: &Path, text: &str) -> Result<(), PkiError> {
    fs::write(path, text).map_err(|source| PkiError::Write { path: path.to_owned(), source })
}

fn certificate_error(name: &str) -> impl FnOnce(rcgen::Error) -> PkiError {
    let name = name.to_owned();
    move |source| PkiError::Certificate { name, source }
}
