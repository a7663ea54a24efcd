package domain

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	libvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/failpoint"
)

// Link is one of a domain's network interfaces.
type Link struct {
	MAC string
	Up  bool

	text string // the whole <interface> as libvirt gave it
}

// network is what a description says of a domain's network.
type network struct {
	links []Link
	other string // a network device whose link libvirt cannot take down, "" where there is none
}

// Links lists the network interfaces of a domain that libvirt knows: of an
// active one as they are, else as they will be.
func (c *Client) Links(ctx context.Context, vm uuid.UUID) ([]Link, error) {
	n, err := c.network(ctx, vm, 0)
	if err != nil {
		return nil, fmt.Errorf("links of %s: %w", vm, err)
	}
	return n.links, nil
}

func (c *Client) network(ctx context.Context, vm uuid.UUID, flags libvirt.DomainXMLFlags) (network, error) {
	text, err := c.xml(ctx, vm, flags)
	if err != nil {
		return network{}, err
	}
	n, err := parseNetwork(text)
	if err != nil || n.other != "" {
		return n, err
	}
	devices, err := parsePassed(text)
	for i := range devices {
		if n.other == "" {
			n.other = devices[i].network(pciDevices)
		}
	}
	return n, err
}

// LinksUp returns the MAC addresses of the links that are up.
func (c *Client) LinksUp(ctx context.Context, vm uuid.UUID) ([]string, error) {
	all, err := c.Links(ctx, vm)
	var up []string
	for _, l := range all {
		if l.Up && !slices.Contains(up, l.MAC) {
			up = append(up, l.MAC)
		}
	}
	return up, err
}

// SetLinks takes the links with these MAC addresses down, or up, of the domain
// that runs and of its lasting description, so that a domain that is started
// again has them so. It returns when libvirt says that they are; those that are
// so already, or are no more, are no error. Every link is tried, whatever comes
// of the others.
//
// Taking links down is an error, when it is done, if the domain has a network
// device whose link libvirt cannot take down: one of QEMU's command line, or one
// of the host's that is passed through and is, or may be, a network adapter.
func (c *Client) SetLinks(ctx context.Context, vm uuid.UUID, macs []string, up bool) error {
	live, lasting, err := c.lives(ctx, vm)
	var errs []error
	if live {
		errs = append(errs, c.setLinks(ctx, vm, macs, up, 0, libvirt.DomainDeviceModifyLive))
	}
	if lasting {
		errs = append(errs, c.setLinks(ctx, vm, macs, up, libvirt.DomainXMLInactive, libvirt.DomainDeviceModifyConfig))
	}
	if err = errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("set links of %s: %w", vm, err)
	}
	return nil
}

// lives says whether a domain is active, and whether it outlives that.
func (c *Client) lives(ctx context.Context, vm uuid.UUID) (live, lasting bool, err error) {
	err = c.read(ctx, c.of(vm), func(l *libvirt.Libvirt) error {
		active, err1 := l.DomainIsActive(c.handle(vm))
		persistent, err2 := l.DomainIsPersistent(c.handle(vm))
		live, lasting = active == 1, persistent == 1
		return errors.Join(err1, err2)
	})
	return live, lasting, err
}

func (c *Client) setLinks(ctx context.Context, vm uuid.UUID, macs []string, up bool, from libvirt.DomainXMLFlags, to libvirt.DomainDeviceModifyFlags) error {
	n, err := c.network(ctx, vm, from)
	if err != nil {
		return err
	}
	var errs []error
	for _, link := range n.links {
		if link.Up != up && slices.Contains(macs, link.MAC) {
			if err := c.setLink(ctx, vm, link.with(up), to); err != nil {
				errs = append(errs, fmt.Errorf("link %s: %w", link.MAC, err))
			}
		}
	}
	if n, err = c.network(ctx, vm, from); err != nil { // by its effect
		return errors.Join(append(errs, err)...)
	}
	for _, link := range n.links {
		if link.Up != up && slices.Contains(macs, link.MAC) && len(errs) == 0 {
			errs = append(errs, fmt.Errorf("libvirt reported success, but up is %t of link %s", link.Up, link.MAC))
		}
	}
	if !up && n.other != "" {
		errs = append(errs, fmt.Errorf("%w: %s", ErrOtherNetwork, n.other))
	}
	return errors.Join(errs...)
}

func (c *Client) setLink(ctx context.Context, vm uuid.UUID, device string, flags libvirt.DomainDeviceModifyFlags) error {
	return c.inTurn(ctx, vm, func(l *libvirt.Libvirt) error {
		failpoint.At(failpoint.Asking)
		err := l.DomainUpdateDeviceFlags(c.handle(vm), device, flags)
		failpoint.At(failpoint.Asked)
		return err
	})
}

// parseNetwork reads the network of a description and keeps each interface as
// the text that it is: what libvirt is asked to change has all that it said, of
// whatever version it is.
func parseNetwork(text string) (network, error) {
	var d struct {
		Interfaces []struct {
			Attrs []xml.Attr `xml:",any,attr"`
			Inner string     `xml:",innerxml"`
			MAC   struct {
				Address string `xml:"address,attr"`
			} `xml:"mac"`
			Link struct {
				State string `xml:"state,attr"`
			} `xml:"link"`
		} `xml:"devices>interface"`
		Args []struct {
			Value string `xml:"value,attr"`
		} `xml:"commandline>arg"`
	}
	if err := xml.Unmarshal([]byte(text), &d); err != nil {
		return network{}, fmt.Errorf("read its network: %w", err)
	}
	var n network
	for _, i := range d.Interfaces {
		var b strings.Builder
		b.WriteString("<interface")
		for _, a := range i.Attrs {
			b.WriteString(" " + a.Name.Local + "='")
			_ = xml.EscapeText(&b, []byte(a.Value))
			b.WriteString("'")
		}
		b.WriteString(">" + i.Inner + "</interface>")
		n.links = append(n.links, Link{MAC: strings.ToLower(i.MAC.Address), Up: i.Link.State != "down", text: b.String()})
	}
	for i, a := range d.Args {
		value := ""
		if i+1 < len(d.Args) {
			value = d.Args[i+1].Value
		}
		if (a.Value == "-netdev" || a.Value == "-nic" || a.Value == "-net") && value != "none" {
			n.other = a.Value + " " + value
		}
	}
	return n, nil
}

var linkElement = regexp.MustCompile(`<link(\s[^>]*)?/>|<link(\s[^>]*)?>\s*</link>`)

// with is the interface's description with its link up or down.
func (l *Link) with(up bool) string {
	state := "<link state='down'/>"
	if up {
		state = "<link state='up'/>"
	}
	rest := linkElement.ReplaceAllString(l.text, "")
	return strings.TrimSuffix(rest, "</interface>") + state + "</interface>"
}
