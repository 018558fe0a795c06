-- Where secrets lie that are not stored here. The data keys of a credential whose passphrase is one of them are empty.
ALTER TABLE credentials ADD COLUMN store_secret_from TEXT;
ALTER TABLE credentials ADD COLUMN passphrase_from TEXT;
