package evidence

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"
)

// ErrSignature is what every error about a signed note wraps.
var ErrSignature = errors.New("signature does not verify")

// Hash is one link of the chain.
type Hash [32]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText writes lower-case hex.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads lower-case hex and nothing else.
func (h *Hash) UnmarshalText(b []byte) error {
	var v Hash
	if n, err := hex.Decode(v[:], b[:min(len(b), 64)]); err != nil || n != 32 || v.String() != string(b) {
		return fmt.Errorf("hash %.80q: not 64 lower-case hex digits", b)
	}
	*h = v
	return nil
}

// Head says what the first Records records of a stream are.
type Head struct {
	Stream  uuid.UUID `json:"stream"`
	Records uint64    `json:"records"` // also the index of the record that holds the head
	Durable uint64    `json:"durable"` // the first so many were on disk
	Chain   Hash      `json:"chain"`   // h of the last of them
	Time    time.Time `json:"time"`
}

const headTitle = "outguard evidence head v1"

func (h Head) text() string {
	return fmt.Sprintf("%s\nstream %s\nrecords %d\ndurable %d\nchain %s\ntime %s\n",
		headTitle, h.Stream, h.Records, h.Durable, h.Chain, h.Time.UTC().Format(time.RFC3339Nano))
}

// OpenHead verifies a signed head and returns it. The note must be to the byte
// what the signer wrote.
func OpenHead(signed []byte, v note.Verifier) (Head, error) {
	h, _, err := openHead(signed, v)
	return h, err
}

// openHead says with which of the host's keys it was signed, too.
func openHead(signed []byte, v note.Verifier) (Head, int, error) {
	text, by, err := openNote(signed, v)
	if err != nil {
		return Head{}, 0, fmt.Errorf("head: %w", err)
	}
	h, err := parseHead(text)
	if err != nil {
		return Head{}, 0, fmt.Errorf("head: %w", err)
	}
	if end, replaced := until(v, by); replaced && h.Time.After(end) {
		return Head{}, 0, fmt.Errorf("head: %w: of %s, by a key that was replaced at %s", ErrSignature, h.Time, end)
	}
	return h, by, nil
}

func parseHead(text string) (Head, error) {
	f, err := noteFields(text, headTitle, "stream", "records", "durable", "chain", "time")
	if err != nil {
		return Head{}, err
	}
	var h Head
	var errs [5]error
	h.Stream, errs[0] = uuid.Parse(f[0])
	h.Records, errs[1] = strconv.ParseUint(f[1], 10, 64)
	h.Durable, errs[2] = strconv.ParseUint(f[2], 10, 64)
	errs[3] = h.Chain.UnmarshalText([]byte(f[3]))
	h.Time, errs[4] = time.Parse(time.RFC3339Nano, f[4])
	if err := errors.Join(errs[:]...); err != nil {
		return Head{}, err
	}
	if h.text() != text {
		return Head{}, errors.New("not in its canonical form")
	}
	return h, nil
}

// noteFields returns the values of a text that has exactly these lines.
func noteFields(text, title string, names ...string) ([]string, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != len(names)+2 || lines[0] != title || lines[len(lines)-1] != "" {
		return nil, fmt.Errorf("not a text of the form %q", title)
	}
	values := make([]string, len(names))
	for i, name := range names {
		v, ok := strings.CutPrefix(lines[i+1], name+" ")
		if !ok {
			return nil, fmt.Errorf("line %d: want %q", i+2, name)
		}
		values[i] = v
	}
	return values, nil
}

// SignNote signs a text, which ends in a newline.
func SignNote(text string, s note.Signer) ([]byte, error) {
	b, err := note.Sign(&note.Note{Text: text}, s)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return b, nil
}

// OpenNote verifies a note that has one signature, v's or, of a Keyring, one of
// its keys', and returns its text.
// Unlike note.Open it refuses every byte that the signer would not have
// written: other signatures, line breaks or loose bits in the base64.
func OpenNote(signed []byte, v note.Verifier) (string, error) {
	text, _, err := openNote(signed, v)
	return text, err
}

func openNote(signed []byte, v note.Verifier) (text string, by int, err error) {
	n, err := note.Open(signed, VerifierList(v))
	if err != nil {
		return "", 0, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	if len(n.Sigs) != 1 || len(n.UnverifiedSigs) != 0 {
		return "", 0, fmt.Errorf("%w: %d signatures beside the host's", ErrSignature, len(n.Sigs)+len(n.UnverifiedSigs)-1)
	}
	sig := n.Sigs[0]
	if _, err := canonicalSignature(sig); err != nil {
		return "", 0, err
	}
	if want := n.Text + "\n" + signatureLine(sig); want != string(signed) {
		return "", 0, fmt.Errorf("%w: not in its canonical form", ErrSignature)
	}
	return n.Text, generation(v, sig), nil
}

// canonicalSignature is the bytes of a signature, the key's hash first.
func canonicalSignature(sig note.Signature) ([]byte, error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(sig.Base64)
	if err == nil && base64.StdEncoding.EncodeToString(raw) != sig.Base64 || len(raw) < 4 {
		err = errors.Join(err, errors.New("not in its canonical form"))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	return raw, nil
}

// noteText is a note's text, its signature unread.
func noteText(signed []byte) string {
	text, _, _ := strings.Cut(string(signed), "\n\n")
	return text + "\n"
}
