package bundle

import (
	"context"
	"errors"
	"io"

	"golang.org/x/mod/sumdb/note"

	"github.com/outguard/outguard/host/evidence"
)

// maxKeys bounds what is read of an archive's KeysPart.
const maxKeys = 256 << 10

// followArchive is what a checker's follow is to a directory: where v did not sign
// the manifest, it takes the archive's word, which v signed, for which keys succeeded
// it. That stands behind what the manifest names before it, so that all of this is
// read once more; an archive that v did sign, and that is most of them, is not. What
// goes wrong here goes wrong again when it is verified, and is told then.
func followArchive(ctx context.Context, path string, v note.Verifier, opts *ArchiveOptions) note.Verifier {
	if _, known := v.(*evidence.Keyring); known {
		return v
	}
	keys, err := archivedKeys(ctx, path, v, opts)
	if err != nil || keys == nil {
		return v
	}
	all, err := evidence.ParseRotations(keys)
	if err != nil {
		return v
	}
	followed, err := evidence.Follow(v, all)
	if err != nil {
		return v
	}
	return followed
}

// archivedKeys reads KeysPart of an archive that v did not sign; nil where it did.
func archivedKeys(ctx context.Context, path string, v note.Verifier, opts *ArchiveOptions) ([]byte, error) {
	r, m, done, err := begin(path, opts.Identities)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := next(r, m, SigName, -1); err != nil {
		return nil, err
	}
	sig, err := io.ReadAll(io.LimitReader(r, maxSig))
	if err != nil {
		return nil, err
	}
	if _, err := evidence.OpenNote(sig, v); err == nil {
		return nil, nil
	}
	for _, e := range m.Parts {
		if err := next(r, m, e.Path, e.Size); err != nil {
			return nil, err
		}
		if e.Path == KeysPart && e.Size <= maxKeys {
			return io.ReadAll(r)
		}
		if err := skip(ctx, r, e, opts.Progress); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("no keys are in it")
}
