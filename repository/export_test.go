package repository

// Document and its parts are backup.json for tests of what it must not say.
type (
	Document   = document
	ReasonJSON = reasonJSON
	VolumeJSON = volumeJSON
	DigestJSON = digestJSON
	FileJSON   = fileJSON
)

// DocumentOf is the manifest as it is written, unless it is not valid; ManifestOf the inverse, whether it is valid or
// not.
func DocumentOf(m Manifest) Document { return m.document() }

func ManifestOf(d Document) Manifest { return d.manifest() }
