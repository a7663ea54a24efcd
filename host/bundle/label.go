package bundle

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"

	"github.com/outguard/outguard/host/evidence"
)

// LabelSuffix is behind an archive's name where the host that made it keeps it:
// a signed note of the host's key, so that the host knows what is in an archive
// that it cannot read, and that it is whole. Its text is
//
//	outguard bundle archive v1
//	file 20261127T161741Z-web-02K.tar.zst.age
//	size 104857600
//	sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//	manifest 60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752
//	bytes 268435456
//	vm 6f1d7f5e-3c0a-4b0e-9a53-0d8a2b0f6c11
//	name "web"
//	finding "02K"
//	order "01a21dcc-4d0c-7899-a90f-51b909e3a04e"
//	created 2026-11-27T16:17:41Z
//
// size and sha256 are the file's own, manifest is the SHA-256 of manifest.json in
// it, bytes what its parts have, and the rest as the manifest has it, in Go's
// quotes where it is text.
const LabelSuffix = ".label"

// Label says what an archive holds.
type Label struct {
	File     string // the archive's name
	Size     int64  // the archive's, in bytes
	SHA256   evidence.Hash
	Manifest evidence.Hash // SHA-256 of manifest.json
	Bytes    int64         // of the parts
	VM       uuid.UUID
	VMName   string
	Finding  string // "" for a capture that a person asked for
	Order    string
	Created  time.Time
}

// ErrLabel is what every error about a label's content wraps.
var ErrLabel = errors.New("not an archive's label")

const (
	labelTitle = "outguard bundle archive v1"
	maxLabel   = 16 << 10
)

// Name is the bundle's: that of the directory that the archive was made of.
func (l *Label) Name() string { return BundleName(l.File) }

// BundleName takes what makes an archive's name off a file's: what is left names
// the bundle, in whatever form it is.
func BundleName(file string) string {
	name, ok := strings.CutSuffix(strings.TrimSuffix(file, EncryptedSuffix), ArchiveSuffix)
	if !ok {
		return file
	}
	return name
}

// Encrypted says whether the archive is for recipients.
func (l *Label) Encrypted() bool { return strings.HasSuffix(l.File, EncryptedSuffix) }

func (l *Label) text() string {
	return fmt.Sprintf("%s\nfile %s\nsize %d\nsha256 %s\nmanifest %s\nbytes %d\nvm %s\nname %s\nfinding %s\norder %s\ncreated %s\n",
		labelTitle, l.File, l.Size, l.SHA256, l.Manifest, l.Bytes, l.VM, strconv.QuoteToASCII(l.VMName),
		strconv.QuoteToASCII(l.Finding), strconv.QuoteToASCII(l.Order), l.Created.UTC().Format(time.RFC3339Nano))
}

// labelOf is the label of what dir holds, but for what only the archive's bytes
// say.
func labelOf(dir, file string) (*Label, error) {
	text, err := readBounded(filepath.Join(dir, ManifestName), MaxManifest)
	if err != nil {
		return nil, err
	}
	m, err := ParseManifest(text)
	if err != nil {
		return nil, err
	}
	l := &Label{
		File: file, Manifest: sha256.Sum256(text), VM: m.VM, VMName: m.VMName, Finding: m.Finding, Order: m.Order, Created: m.Created,
	}
	for _, p := range m.Parts {
		l.Bytes += p.Size
	}
	return l, nil
}

// ParseLabel verifies a label by the host's key and reads exactly what the host
// writes.
func ParseLabel(signed []byte, v note.Verifier) (*Label, error) {
	text, err := evidence.OpenNote(signed, v)
	if err != nil {
		return nil, err
	}
	rest, ok := strings.CutPrefix(text, labelTitle+"\n")
	if !ok {
		return nil, ErrLabel
	}
	l := &Label{}
	fields := []struct {
		name string
		read func(string) error
	}{
		{"file", func(s string) error { l.File = s; return checkPath(s) }},
		{"size", number(&l.Size)}, {"sha256", hash(&l.SHA256)}, {"manifest", hash(&l.Manifest)}, {"bytes", number(&l.Bytes)},
		{"vm", func(s string) (err error) { l.VM, err = uuid.Parse(s); return err }},
		{"name", unquoted(&l.VMName)}, {"finding", unquoted(&l.Finding)}, {"order", unquoted(&l.Order)},
		{"created", func(s string) (err error) { l.Created, err = time.Parse(time.RFC3339Nano, s); return err }},
	}
	for _, f := range fields {
		line, next, _ := strings.Cut(rest, "\n")
		value, ok := strings.CutPrefix(line, f.name+" ")
		if !ok {
			return nil, fmt.Errorf("%w: no %s", ErrLabel, f.name)
		}
		if err := f.read(value); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrLabel, f.name, err)
		}
		rest = next
	}
	if l.text() != text || strings.ContainsRune(l.File, '/') {
		return nil, fmt.Errorf("%w: not in its canonical form", ErrLabel)
	}
	return l, nil
}

func number(to *int64) func(string) error {
	return func(s string) error {
		n, err := strconv.ParseUint(s, 10, 63)
		*to = int64(n)
		return err
	}
}

func hash(to *evidence.Hash) func(string) error {
	return func(s string) error { return to.UnmarshalText([]byte(s)) }
}

func unquoted(to *string) func(string) error {
	return func(s string) (err error) { *to, err = strconv.Unquote(s); return err }
}

// VerifyLabelled holds an archive's bytes against the label beside it: it is the
// file that the host made, which needs no identity. What is in it is not looked at.
// The error wraps ErrChanged where it is not as it was written.
func VerifyLabelled(ctx context.Context, archive string, v note.Verifier, progress func(part string, done, total int64)) (*Label, error) {
	l, err := ReadLabel(archive, v)
	if err != nil {
		return nil, err
	}
	f, err := openRegular(archive)
	if err != nil {
		return nil, fmt.Errorf("verify archive: %w", err)
	}
	defer f.Close()
	got, err := digest(ctx, f, l.File, progress, nil)
	switch {
	case err != nil:
		return nil, fmt.Errorf("verify archive: %w", err)
	case got.SHA256 != l.SHA256 || got.Size != l.Size:
		return nil, fmt.Errorf("verify archive %s: SHA-256 %s, want %s: %w", archive, got.SHA256, l.SHA256, ErrChanged)
	}
	return l, nil
}

// HasLabel says whether there is one beside an archive.
func HasLabel(archive string) bool {
	_, err := os.Lstat(archive + LabelSuffix)
	return err == nil
}

// ReadLabel reads the label beside an archive, and holds it against the name and
// the size of what is there. The archive's bytes it does not read.
func ReadLabel(archive string, v note.Verifier) (*Label, error) {
	l, err := readLabel(archive, v)
	if err != nil {
		return nil, fmt.Errorf("label of %s: %w", archive, err)
	}
	return l, nil
}

func readLabel(archive string, v note.Verifier) (*Label, error) {
	b, err := readBounded(archive+LabelSuffix, maxLabel)
	if err != nil {
		return nil, err
	}
	l, err := ParseLabel(b, v)
	if err != nil {
		return nil, err
	}
	fi, err := os.Lstat(archive)
	switch {
	case err != nil:
		return nil, err
	case l.File != filepath.Base(archive):
		return nil, fmt.Errorf("it is of %s: %w", Clean(l.File), ErrChanged)
	case !fi.Mode().IsRegular() || fi.Size() != l.Size:
		return nil, fmt.Errorf("%s of %d bytes, want %d: %w", fi.Mode().Type(), fi.Size(), l.Size, ErrChanged)
	}
	return l, nil
}
