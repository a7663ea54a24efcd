package serial

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/outguard/outguard/vsockproto"
)

// vector reads an annotated hex file: bytes up to a semicolon, comments behind
// it, and lines that begin with # are comments as a whole.
func vector(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata/vectors", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		digits, _, _ := strings.Cut(line, ";")
		part, err := hex.DecodeString(strings.Join(strings.Fields(digits), ""))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		b = append(b, part...)
	}
	return b
}

const g, h = 0x1122334455667788, 0x99aabbccddeeff01

var vectors = map[string][]byte{
	"hello":  AppendPacket(nil, Hello, 0, h, nil),
	"open":   AppendPacket(nil, Open, g, h, nil),
	"accept": AppendPacket(nil, Accept, g, h, nil),
	"data":   AppendPacket(nil, Data, g, h, []byte("outguard")),
	"close":  AppendPacket(nil, Close, g, h, nil),
}

func TestVectors(t *testing.T) {
	for name, want := range vectors {
		got := vector(t, name)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the file has\n% x, appended is\n% x", name, got, want)
		}
		p, err := ParseHeader(got)
		if err != nil || p.Type.String() != name || p.Host != h {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

// TestEveryFlippedBitIsSeen: of a header and of a payload.
func TestEveryFlippedBitIsSeen(t *testing.T) {
	for name, b := range vectors {
		for i := range b {
			for bit := range 8 {
				bad := bytes.Clone(b)
				bad[i] ^= 1 << bit
				r := reader{src: bytes.NewReader(bad)}
				if p, _, err := r.next(g, h); err != io.EOF {
					t.Fatalf("%s, byte %d, bit %d: %+v, %v", name, i, bit, p, err)
				}
			}
		}
	}
}

func TestParseHeaderRefuses(t *testing.T) {
	for name, b := range map[string][]byte{
		"data without payload": AppendPacket(nil, Data, g, h, nil),
		"data of nobody":       AppendPacket(nil, Data, 0, h, []byte{1}),
		"hello of a guest":     AppendPacket(nil, Hello, g, h, nil),
		"hello of nobody":      AppendPacket(nil, Hello, 0, 0, nil),
		"open of nobody":       AppendPacket(nil, Open, 0, h, nil),
		"accept of no host":    AppendPacket(nil, Accept, g, 0, nil),
		"close with payload":   AppendPacket(nil, Close, g, h, []byte{1}),
		"too long":             AppendPacket(nil, Data, g, h, make([]byte, MaxPayload+1)),
		"type 0":               AppendPacket(nil, 0, g, h, nil),
		"type 6":               AppendPacket(nil, 6, g, h, nil),
	} {
		if p, err := ParseHeader(b); !errors.Is(err, ErrNoPacket) || p != (Header{}) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	if _, err := ParseHeader(vectors["open"][:HeaderSize-1]); !errors.Is(err, vsockproto.ErrShort) {
		t.Errorf("short: %v", err)
	}
}

func FuzzHeader(f *testing.F) {
	for name := range vectors {
		f.Add(vector(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseHeader(b)
		if err != nil {
			if p != (Header{}) {
				t.Fatalf("refused (%v), and left %+v", err, p)
			}
			return
		}
		if b = b[HeaderSize:]; len(b) < p.Length {
			return
		}
		again, err := ParseHeader(AppendPacket(nil, p.Type, p.Guest, p.Host, b[:p.Length]))
		if p.Sum = again.Sum; err != nil || again != p { // the payload need not be the one
			t.Fatalf("%+v became %+v, %v", p, again, err)
		}
	})
}

// FuzzNoise puts anything before a packet: what is read is no data but the
// packet's own, and behind zeros the packet is always found.
func FuzzNoise(f *testing.F) {
	for name := range vectors {
		f.Add(vector(f, name), 7)
		f.Add(vector(f, name)[:20], 1)
	}
	f.Add(AppendPacket(nil, Data, g, h+1, make([]byte, 100))[:50], 1)
	f.Fuzz(func(t *testing.T, noise []byte, step int) {
		const host = h ^ 0x5a5a // nobody guesses a nonce
		payload := []byte("what was sent")
		stream := append(bytes.Clone(noise), make([]byte, maxPacket)...)
		stream = AppendPacket(stream, Data, g, host, payload)
		r := reader{src: &steps{b: stream, n: max(1, step%5000)}}
		for {
			p, got, err := r.next(g, host)
			if err != nil {
				t.Fatalf("the packet was not found: %v", err)
			}
			if len(r.buf) > maxPacket {
				t.Fatalf("a buffer of %d bytes", len(r.buf))
			}
			if p.Type != Data {
				continue // whoever knows the layout can write one
			}
			if !bytes.Equal(got, payload) {
				t.Fatalf("read %q", got)
			}
			return
		}
	})
}

// steps hands out n bytes at a time.
type steps struct {
	b []byte
	n int
}

func (s *steps) Read(b []byte) (int, error) {
	if len(s.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.b[:min(s.n, len(s.b))])
	s.b = s.b[n:]
	return n, nil
}
