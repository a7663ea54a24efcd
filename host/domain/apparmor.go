package domain

import (
	"context"
	"encoding/xml"
	"fmt"
	"slices"
	"strings"

	libvirt "github.com/digitalocean/go-libvirt"
)

// AppArmor returns what the host's AppArmor profile of QEMU has to be told
// before the domain of e can start, "" where libvirt does not confine QEMU by
// AppArmor. libvirt derives a domain's profile from the devices that it knows;
// a path on QEMU's own command line and the file of a fw_cfg entry may not be
// among them.
func (c *Client) AppArmor(ctx context.Context, e *Enrolment) (string, error) {
	text, err := c.capabilities(ctx)
	if err != nil {
		return "", fmt.Errorf("ask libvirt how QEMU is confined: %w", err)
	}
	caps, err := parseCapabilities(text)
	if err != nil || !caps.confines("apparmor") {
		return "", err
	}
	return e.appArmor(), nil
}

func (e *Enrolment) appArmor() string {
	var b strings.Builder
	b.WriteString("libvirt confines QEMU by AppArmor here, and its profile may not know these paths. Where the domain\n" +
		"does not start, add to /etc/apparmor.d/local/abstractions/libvirt-qemu (not tested on a confined host):\n")
	fmt.Fprintf(&b, "  %s r,\n", quoteAppArmor(e.KeyFile))
	if e.Vhost != "" {
		fmt.Fprintf(&b, "  %s rw,\n", quoteAppArmor(e.Vhost))
	}
	return b.String()
}

// quoteAppArmor writes a path as a rule that matches it alone.
func quoteAppArmor(path string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range printable(path) {
		if strings.ContainsRune(`\"*?[]{}^`, r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	b.WriteByte('"')
	return b.String()
}

// capabilities is what of libvirt's capabilities is about security.
type capabilities struct {
	Models []secModel `xml:"host>secmodel"`
}

type secModel struct {
	Model  string   `xml:"model"`
	Labels []string `xml:"baselabel"`
}

func (c *Client) capabilities(ctx context.Context) (text string, err error) {
	err = c.read(ctx, &c.lines[0], func(l *libvirt.Libvirt) (err error) {
		text, err = l.ConnectGetCapabilities()
		return err
	})
	return text, err
}

func parseCapabilities(text string) (caps capabilities, err error) {
	if err = xml.Unmarshal([]byte(text), &caps); err != nil {
		err = fmt.Errorf("libvirt's capabilities: %w", err)
	}
	return caps, err
}

func (c capabilities) confines(model string) bool {
	return slices.ContainsFunc(c.Models, func(m secModel) bool { return m.Model == model })
}
