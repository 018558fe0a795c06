//! Request of `blockctl credentials update`.

use crate::{
    cli::credential_update::UpdateArgs,
    failure::Failure,
    secrets::{Sources, read_file},
};
use blockd_api::{
    Secret, SecretInput, SecretRef,
    credential_update::{NewAccess, UpdateCredential},
    credentials::{AssumedRole, AzureAuth, ProviderKind},
};
use std::path::{Path, PathBuf};

/// Reads a secret, never from the environment: a leftover variable must not change a credential.
fn input(
    what: &'static str,
    flag: Option<&Secret>,
    file: Option<&PathBuf>,
    from: Option<&SecretRef>,
) -> Result<Option<SecretInput>, Failure> {
    match (flag, file, from) {
        (None, None, None) => Ok(None),
        _ => Sources { what, flag, file: file.map(PathBuf::as_path), from, variable: "", is_public: false }
            .input(),
    }
}

/// Builds the request from the options and reads secrets. `kept` is the current provider.
///
/// # Errors
/// An option cannot be changed or belongs to another provider; a secret cannot be read.
pub fn request(args: &UpdateArgs, kept: ProviderKind) -> Result<UpdateCredential, Failure> {
    if let Some(flag) = args.place.given() {
        return Err(Failure::usage(format!(
            "{flag} says where the backups are, and that cannot be changed: another place needs credentials of its own (blockctl credentials create)"
        )));
    }
    refuse_two_on_stdin(args)?;
    let ca_certificates = match args.ca_certificate.as_deref() {
        Some("") => Some(String::new()),
        Some(path) => Some(read_file("CA certificate", Path::new(path))?.expose().to_owned()),
        None => None,
    };
    let encryption_passphrase = input(
        "encryption passphrase",
        args.encryption_passphrase.as_ref(),
        args.encryption_passphrase_file.as_ref(),
        args.encryption_passphrase_from.as_ref(),
    )?;
    let request = UpdateCredential {
        access: access(args, kept)?,
        storage_class: args.s3_storage_class.clone(),
        ca_certificates,
        proxy: args.proxy.clone(),
        encryption_passphrase,
    };
    match request.is_empty() {
        true => Err(Failure::usage("nothing is to be changed: give at least one flag (see --help)")),
        false => Ok(request),
    }
}

fn refuse_two_on_stdin(args: &UpdateArgs) -> Result<(), Failure> {
    let files = [
        &args.s3_secret_key_file,
        &args.azure_account_key_file,
        &args.azure_sas_token_file,
        &args.google_json_key_file,
        &args.swift_key_file,
        &args.swift_token_file,
        &args.encryption_passphrase_file,
    ];
    let on_stdin = files.into_iter().flatten().filter(|path| path.as_os_str() == "-").count();
    let with_certificate = on_stdin + usize::from(args.ca_certificate.as_deref() == Some("-"));
    match with_certificate > 1 {
        true => Err(Failure::usage("two files cannot both be read from stdin: give a file for one of them")),
        false => Ok(()),
    }
}

/// Builds the access part of the request. The daemon checks providers; `--use-iam` belongs to several.
fn access(args: &UpdateArgs, kept: ProviderKind) -> Result<Option<NewAccess>, Failure> {
    let secret_key = input(
        "S3 secret key",
        args.s3_secret_key.as_ref(),
        args.s3_secret_key_file.as_ref(),
        args.s3_secret_key_from.as_ref(),
    )?;
    let account_key = input(
        "Azure account key",
        args.azure_account_key.as_ref(),
        args.azure_account_key_file.as_ref(),
        args.azure_account_key_from.as_ref(),
    )?;
    let sas = input(
        "Azure shared access signature",
        args.azure_sas_token.as_ref(),
        args.azure_sas_token_file.as_ref(),
        args.azure_sas_token_from.as_ref(),
    )?;
    let json_key = input(
        "Google key file",
        None,
        args.google_json_key_file.as_ref(),
        args.google_json_key_from.as_ref(),
    )?;
    let key = input(
        "Swift key",
        args.swift_key.as_ref(),
        args.swift_key_file.as_ref(),
        args.swift_key_from.as_ref(),
    )?;
    let token = input(
        "Swift token",
        args.swift_token.as_ref(),
        args.swift_token_file.as_ref(),
        args.swift_token_from.as_ref(),
    )?;
    let use_iam = |kind| args.use_iam && kept == kind;
    let role = args.s3_role_arn.clone().map(|arn| AssumedRole {
        arn,
        external_id: args.s3_external_id.clone(),
        endpoint: args.s3_sts_endpoint.clone(),
    });
    let mut found = Vec::new();
    if args.s3_access_key.is_some() || secret_key.is_some() || role.is_some() || use_iam(ProviderKind::S3) {
        let (access_key, use_iam) = (args.s3_access_key.clone(), args.use_iam);
        found.push(NewAccess::S3 { access_key, secret_key, use_iam, role });
    }
    let azure = match (account_key, sas) {
        (Some(_) | None, Some(_)) | (Some(_), None) if use_iam(ProviderKind::Azure) => {
            return Err(Failure::usage("--use-iam and a key are both given: drop one of them"));
        }
        (Some(key), _) => Some(AzureAuth::AccountKey { key }),
        (None, Some(token)) => Some(AzureAuth::Sas { token }),
        (None, None) => use_iam(ProviderKind::Azure)
            .then(|| AzureAuth::ManagedIdentity { client_id: args.azure_client_id.clone() }),
    };
    found.extend(azure.map(|auth| NewAccess::Azure { auth }));
    if json_key.is_some() || use_iam(ProviderKind::Google) {
        found.push(NewAccess::Google { json_key, use_iam: args.use_iam });
    }
    if key.is_some() || token.is_some() {
        found.push(NewAccess::Swift { key, token });
    }
    let one = found.pop();
    if !found.is_empty() {
        return Err(Failure::usage(format!(
            "keys of several kinds of stores are given, and these credentials are for {kept}"
        )));
    }
    if one.is_none() && args.use_iam {
        return Err(Failure::usage(format!(
            "--use-iam is for s3, azure and google, and these credentials are for {kept}"
        )));
    }
    Ok(one)
}
