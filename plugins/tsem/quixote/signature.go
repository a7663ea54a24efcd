package quixote

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"

	"github.com/outguard/outguard/plugins/tsem"
)

// ErrSignature is for a signature that does not verify.
var ErrSignature = errors.New("signature does not verify")

// signature verifies the lines so far.
func (l *loader) signature(argument []byte) error {
	if l.key == nil {
		return errors.New("signature: no key before it")
	}
	if l.out.Signed {
		return errors.New("signature: there is one already")
	}
	key := l.o.Key
	if key == nil {
		var err error
		if key, err = fileKey(l.key); err != nil {
			return fmt.Errorf("key: %w", err)
		}
	}
	signature, err := base64.StdEncoding.DecodeString(string(argument))
	if err != nil {
		return fmt.Errorf("signature: %w", err)
	}
	if rsa.VerifyPKCS1v15(key, crypto.SHA256, l.signed.Sum(nil), signature) != nil {
		return ErrSignature
	}
	l.out.Signed = true
	return nil
}

func fileKey(argument []byte) (*rsa.PublicKey, error) {
	text, err := base64.StdEncoding.DecodeString(string(argument))
	if err != nil {
		return nil, err
	}
	return ParseKey(text)
}

// ParseKey reads an RSA public key from PEM.
func ParseKey(text []byte) (*rsa.PublicKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New("no PEM block PUBLIC KEY")
	}
	any, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, is := any.(*rsa.PublicKey)
	if !is {
		return nil, fmt.Errorf("a key of type %T, want RSA", any)
	}
	return key, nil
}

// SignModel writes a model file with its key and signature, as Quixote's
// sign-model does.
func SignModel(w io.Writer, m *tsem.Model, key *rsa.PrivateKey, o *WriteOptions) error {
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return fmt.Errorf("sign model: %w", err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	signed := sha256.New()
	each := io.MultiWriter(w, nulWriter{signed})
	if _, err := fmt.Fprintf(each, "key %s\n", base64.StdEncoding.EncodeToString(public)); err != nil {
		return fmt.Errorf("sign model: %w", err)
	}
	if err := WriteModel(each, m, o); err != nil {
		return err
	}
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, signed.Sum(nil))
	if err != nil {
		return fmt.Errorf("sign model: %w", err)
	}
	if _, err := fmt.Fprintf(w, "%s%s\n", signatureCommand, base64.StdEncoding.EncodeToString(signature)); err != nil {
		return fmt.Errorf("sign model: %w", err)
	}
	return nil
}

// nulWriter passes each newline on as a NUL.
type nulWriter struct{ w io.Writer }

func (n nulWriter) Write(b []byte) (int, error) {
	lines := make([]byte, len(b))
	for i, c := range b {
		if c == '\n' {
			c = 0
		}
		lines[i] = c
	}
	return n.w.Write(lines)
}
