//! `blockctl credentials …`

pub mod args;
pub mod create;
pub mod rekey;
pub mod update;

use super::{Context, counted, or_dash};
use crate::{
    failure::{EXIT_DONE, Failure},
    secrets::{Sources, read_file},
    table::{Facts, Table},
};
use args::CredentialsCommand;
use blockd_api::{
    ByteSize, LimitWindow,
    credentials::{Credential, ProviderKind, RekeyCredential},
    format_time, operations,
};
use create::request;

pub async fn run(context: &Context<'_>, command: CredentialsCommand) -> Result<u8, Failure> {
    let Context { client, output } = context;
    match command {
        CredentialsCommand::Create(args) => {
            let credential = client.call(operations::CREATE_CREDENTIAL, &request(*args)?).await?;
            match output.is_json() {
                true => output.document(&credential),
                false => output.line(format!("Credentials created successfully, UUID:{}", credential.uuid)),
            }?;
        }
        CredentialsCommand::List => {
            let list = client.call(operations::LIST_CREDENTIALS, &()).await?.credentials;
            match output.is_json() {
                true => output.document(&list),
                false => show(context, &list),
            }?;
        }
        CredentialsCommand::Inspect(args) => {
            let credential = client.call_at(operations::GET_CREDENTIAL, &args.credential, &()).await?;
            match output.is_json() {
                true => output.document(&credential),
                false => output.raw(facts(&credential).render().as_bytes()),
            }?;
        }
        CredentialsCommand::Validate(args) => {
            let credential = client.call_at(operations::VALIDATE_CREDENTIAL, &args.credential, &()).await?;
            match output.is_json() {
                true => output.document(&credential),
                false => output.line(format!("Credentials validated successfully, UUID:{}", credential.uuid)),
            }?;
        }
        CredentialsCommand::Update(args) => {
            let kept = client.call_at(operations::GET_CREDENTIAL, &args.credential, &()).await?.provider;
            let request = update::request(&args, kept)?;
            let credential =
                client.call_at(operations::UPDATE_CREDENTIAL, &args.credential, &request).await?;
            match output.is_json() {
                true => output.document(&credential),
                false => output.line(format!("Credentials updated successfully, UUID:{}", credential.uuid)),
            }?;
        }
        CredentialsCommand::Rekey(args) => {
            let passphrase = Sources {
                what: "encryption passphrase",
                flag: args.encryption_passphrase.as_ref(),
                file: args.encryption_passphrase_file.as_deref(),
                from: None,
                variable: "BLOCKD_ENCRYPTION_PASSPHRASE",
                is_public: false,
            };
            let passphrase = passphrase.read()?;
            if passphrase.is_none()
                && client
                    .call_at(operations::GET_CREDENTIAL, &args.credential, &())
                    .await?
                    .encryption_key_from
                    .is_none()
            {
                let message = "give the passphrase that holds now: --encryption-passphrase-file FILE";
                return Err(Failure::usage(message));
            }
            let new_passphrase = args.new_encryption_passphrase_file.as_deref();
            let new_passphrase =
                new_passphrase.map(|path| read_file("new encryption passphrase", path)).transpose()?;
            let new_passphrase = match args.new_encryption_passphrase_from {
                Some(reference) => Some(reference.into()),
                None => new_passphrase.map(Into::into),
            };
            let (new_data_key, accept_key) = (args.new_data_key, args.accept_key);
            let request = RekeyCredential { passphrase, new_passphrase, new_data_key, accept_key };
            let rekeyed = client.call_at(operations::REKEY_CREDENTIAL, &args.credential, &request).await?;
            match output.is_json() {
                true => output.document(&rekeyed),
                false => output.line(format!(
                    "Credentials rekeyed successfully, UUID:{} ({} with the new passphrase{}, {} in all)",
                    rekeyed.uuid,
                    counted(rekeyed.rewrapped, "data key"),
                    if rekeyed.new_data_key { ", a new data key for new backups" } else { "" },
                    rekeyed.data_keys,
                )),
            }?;
            if rekeyed.foreign > 0 {
                let slots = counted(rekeyed.foreign, "key slot");
                output.note(format!("warning: {slots} open with neither passphrase and stay as they are"));
            }
        }
        CredentialsCommand::Limit(args) => {
            let limits =
                args.limits(&client.call_at(operations::GET_CREDENTIAL, &args.credential, &()).await?);
            let credential = client.call_at(operations::LIMIT_CREDENTIAL, &args.credential, &limits).await?;
            let shown = |otherwise, windows: &[LimitWindow]| {
                limit(otherwise, windows).unwrap_or_else(|| "no limit".to_owned())
            };
            match output.is_json() {
                true => output.document(&credential),
                false => output.line(format!(
                    "Credentials limited successfully, UUID:{} (upload {}, download {})",
                    credential.uuid,
                    shown(credential.limit_upload_bytes_per_s, &credential.limit_upload_windows),
                    shown(credential.limit_download_bytes_per_s, &credential.limit_download_windows),
                )),
            }?;
        }
        CredentialsCommand::Delete(args) => {
            let deleted = client.call_at(operations::DELETE_CREDENTIAL, &args.credential, &()).await?;
            match output.is_json() {
                true => output.document(&deleted),
                false => output.line(format!("Credentials deleted successfully, UUID:{}", deleted.id)),
            }?;
        }
    }
    Ok(EXIT_DONE)
}

/// Columns of one provider's table, between the name and the common ones.
type Columns = (&'static str, ProviderKind, &'static [&'static str], fn(&Credential) -> Vec<String>);

const KINDS: [Columns; 5] = [
    (
        "S3",
        ProviderKind::S3,
        &[
            "UUID",
            "NAME",
            "REGION",
            "ENDPOINT",
            "ACCESS KEY",
            "SSL ENABLED",
            "ENCRYPTION",
            "BUCKET",
            "CREATE IF ABSENT",
            "WRITE THROUGHPUT (KBPS)",
        ],
        |one| {
            vec![
                or_dash(one.region.as_ref()),
                or_dash(one.endpoint.as_ref()),
                or_dash(one.access_key.as_ref()),
                or_dash(one.ssl_enabled),
                one.encryption.to_string(),
                or_dash(place(one)),
            ]
        },
    ),
    (
        "Google",
        ProviderKind::Google,
        &[
            "UUID",
            "NAME",
            "PROJECT ID",
            "ENCRYPTION",
            "BUCKET",
            "CREATE IF ABSENT",
            "WRITE THROUGHPUT (KBPS)",
        ],
        |one| vec![or_dash(one.project.as_ref()), one.encryption.to_string(), or_dash(place(one))],
    ),
    (
        "Azure",
        ProviderKind::Azure,
        &[
            "UUID",
            "NAME",
            "ACCOUNT NAME",
            "ENCRYPTION",
            "BUCKET",
            "CREATE IF ABSENT",
            "WRITE THROUGHPUT (KBPS)",
        ],
        |one| vec![or_dash(one.account.as_ref()), one.encryption.to_string(), or_dash(place(one))],
    ),
    (
        "Swift",
        ProviderKind::Swift,
        &[
            "UUID",
            "NAME",
            "AUTH URL",
            "USER",
            "ENCRYPTION",
            "BUCKET",
            "CREATE IF ABSENT",
            "WRITE THROUGHPUT (KBPS)",
        ],
        |one| {
            vec![
                or_dash(one.endpoint.as_ref()),
                or_dash(one.user.as_ref()),
                one.encryption.to_string(),
                or_dash(place(one)),
            ]
        },
    ),
    (
        "Local",
        ProviderKind::Local,
        &["UUID", "NAME", "PATH", "ENCRYPTION", "CREATE IF ABSENT", "WRITE THROUGHPUT (KBPS)"],
        |one| vec![or_dash(place(one)), one.encryption.to_string()],
    ),
];

fn show(context: &Context<'_>, list: &[Credential]) -> Result<(), Failure> {
    let output = context.output;
    let mut between = "";
    for (title, kind, header, cells) in KINDS {
        let mut table = Table::new(header);
        let of_kind: Vec<&Credential> = list.iter().filter(|one| one.provider == kind).collect();
        for one in &of_kind {
            let mut row = vec![one.uuid.to_string(), one.name.to_string()];
            row.extend(cells(one));
            row.extend([one.conditional_put.to_string(), or_dash(one.write_throughput_kbps)]);
            table.row(row);
        }
        if !of_kind.is_empty() {
            output.raw(format!("{between}{title} Credentials\n").as_bytes())?;
            output.table(&table)?;
            between = "\n";
        }
    }
    if list.is_empty() {
        output.note("There are no credentials; see `blockctl credentials create --help`.");
    }
    Ok(())
}

/// Formats bucket or directory with the prefix.
fn place(one: &Credential) -> Option<String> {
    let path = || one.path.as_ref().map(|path| path.display().to_string());
    let place = one.bucket.clone().or_else(path)?;
    Some(match &one.prefix {
        Some(prefix) => format!("{place}/{prefix}"),
        None => place,
    })
}

fn facts(one: &Credential) -> Facts {
    let mut facts = Facts::default();
    facts.add("Credentials", one.uuid).add("Name", &one.name).add("Provider", one.provider);
    for (name, value) in [
        ("Path", one.path.as_ref().map(|path| path.display().to_string())),
        ("Endpoint", one.endpoint.clone()),
        ("Region", one.region.clone()),
        ("Account", one.account.clone()),
        ("Project", one.project.clone()),
        ("User", one.user.clone()),
        ("Bucket", one.bucket.clone()),
        ("Prefix", one.prefix.clone()),
        ("Authentication", one.auth.clone()),
        ("Access key", one.access_key.clone()),
        ("Role", one.role.as_ref().map(|role| role.arn.clone())),
        ("External id", one.role.as_ref().and_then(|role| role.external_id.clone())),
        ("TLS", one.ssl_enabled.map(yes_or_no)),
        ("Path style", one.path_style.map(yes_or_no)),
        ("Storage class", one.storage_class.clone()),
        ("Proxy", one.proxy.clone()),
        ("CA certificates", one.has_ca_certificates.then(|| "own".to_owned())),
        ("Upload limit", limit(one.limit_upload_bytes_per_s, &one.limit_upload_windows)),
        ("Download limit", limit(one.limit_download_bytes_per_s, &one.limit_download_windows)),
        ("Times of limits", one.limit_time_zone.clone()),
    ] {
        if let Some(value) = value {
            facts.add(name, value);
        }
    }
    for (name, from) in [("Store key", &one.store_key_from), ("Passphrase", &one.encryption_key_from)] {
        if let Some(from) = from {
            facts.add(name, from);
        }
    }
    facts
        .add("Encryption", yes_or_no(one.encryption))
        .add(
            "Create if absent",
            if one.conditional_put { "yes, as tried" } else { "no, blockd does without" },
        )
        .add("Created", format_time(one.created))
        .add("Write throughput (KBPS)", or_dash(one.write_throughput_kbps));
    facts
}

fn yes_or_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

/// Formats a bandwidth limit, by time of day if it has windows; `None` without a limit.
fn limit(otherwise_bytes_per_s: Option<u64>, windows: &[LimitWindow]) -> Option<String> {
    let otherwise = otherwise_bytes_per_s.map(|bytes| format!("{}/s", ByteSize::from_bytes(bytes)));
    if windows.is_empty() {
        return otherwise;
    }
    let mut parts: Vec<String> = windows.iter().map(LimitWindow::to_string).collect();
    parts.push(otherwise.unwrap_or_else(|| "no limit".to_owned()) + " otherwise");
    Some(parts.join(", "))
}
