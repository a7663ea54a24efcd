package domain

import (
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// passed is a device of the host's that a domain has for its own.
type passed struct {
	Type   string `xml:"type,attr"` // pci, usb, mdev, scsi …
	Source struct {
		Address struct {
			Domain   string `xml:"domain,attr"`
			Bus      string `xml:"bus,attr"`
			Slot     string `xml:"slot,attr"`
			Function string `xml:"function,attr"`
		} `xml:"address"`
	} `xml:"source"`
}

// pciDevices is where the host's kernel tells of them.
const pciDevices = "/sys/bus/pci/devices"

// network says which network device it is, or may be: libvirt knows of no link
// that it could take down of it. "" for one that is none. A PCI device's class
// is asked of the host; where nobody can tell, and of USB, it may be one.
func (p *passed) network(devices string) string {
	switch p.Type {
	case "pci":
		at := p.pci()
		class, err := os.ReadFile(filepath.Join(devices, at, "class"))
		if text := strings.TrimSpace(string(class)); err == nil && !strings.HasPrefix(text, "0x02") {
			return ""
		}
		return "PCI device " + at
	case "usb":
		return "a USB device"
	}
	return ""
}

// pci is the device's name in the kernel.
func (p *passed) pci() string {
	part := func(text string) (n uint64) {
		n, _ = strconv.ParseUint(text, 0, 16) // libvirt writes 0x.. and has checked it
		return n
	}
	a := &p.Source.Address
	return fmt.Sprintf("%04x:%02x:%02x.%x", part(a.Domain), part(a.Bus), part(a.Slot), part(a.Function))
}

// parsePassed lists a description's passed-through devices.
func parsePassed(text string) ([]passed, error) {
	var d struct {
		Devices []passed `xml:"devices>hostdev"`
	}
	if err := xml.Unmarshal([]byte(text), &d); err != nil {
		return nil, fmt.Errorf("read its devices: %w", err)
	}
	return d.Devices, nil
}
