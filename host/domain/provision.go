package domain

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// KeyName is the fw_cfg entry at which the guest finds its key.
const KeyName = "opt/outguard/key"

// PortName is the virtio-serial port at which the guest's agent finds the host.
const PortName = "org.outguard.agent.0"

// What Enroll may have added beside the key.
const (
	addedPort   = "virtio-serial"
	addedBus    = "virtio-serial-controller"
	addedVsock  = "vsock"
	addedQEMU   = "vhost-user-vsock"
	addedShared = "shared-memory"
	addedNotes  = "vmcoreinfo"
)

const (
	chardevID = "outguard-vsock"
	deviceID  = "outguard-vsock0"
)

// provision returns a domain's description with the channel and the key of e.
// What before added is taken out first, so that doing it twice is doing it
// once.
func provision(text string, e, before *Enrolment) (string, error) {
	def, err := stripped(text, before)
	if err != nil {
		return "", err
	}
	if def.OS == nil || def.OS.Type == nil || def.OS.Type.Type != "hvm" || (def.Type != "kvm" && def.Type != "qemu") {
		return "", errors.New("not a QEMU virtual machine")
	}
	if def.Devices == nil {
		def.Devices = &libvirtxml.DomainDeviceList{}
	}
	switch e.Transport {
	case VhostUser:
		err = addVhost(def, text, e)
	case Serial:
		err = addPort(def, e)
	default:
		addVsock(def, e)
	}
	if err != nil {
		return "", err
	}
	addKey(def, e.KeyFile)
	addNotes(def, e)
	return def.Marshal()
}

// strip returns a domain's description without what before added.
func strip(text string, before *Enrolment) (string, error) {
	def, err := stripped(text, before)
	if err != nil {
		return "", err
	}
	return def.Marshal()
}

func stripped(text string, before *Enrolment) (*libvirtxml.Domain, error) {
	def := &libvirtxml.Domain{}
	if err := def.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("read its description: %w", err)
	}
	removeKey(def)
	removeVhost(def)
	removePort(def, before)
	if slices.Contains(before.Added, addedVsock) && def.Devices != nil {
		def.Devices.VSock = nil
	}
	if b := def.MemoryBacking; b != nil && slices.Contains(before.Added, addedShared) {
		b.MemorySource, b.MemoryAccess = nil, nil
		if *b == (libvirtxml.DomainMemoryBacking{}) {
			def.MemoryBacking = nil
		}
	}
	if f := def.Features; f != nil && slices.Contains(before.Added, addedNotes) {
		if f.VMCoreInfo = nil; *f == (libvirtxml.DomainFeatureList{}) {
			def.Features = nil
		}
	}
	return def, nil
}

// addNotes has the guest's kernel leave its VMCOREINFO with QEMU, which puts it
// into every dump of memory: without it no tool knows where in there the kernel is.
// The same driver that the guest reads its key with does it.
func addNotes(def *libvirtxml.Domain, e *Enrolment) {
	if def.Features == nil {
		def.Features = &libvirtxml.DomainFeatureList{}
	}
	if def.Features.VMCoreInfo != nil || withoutDMA.MatchString(def.OS.Type.Machine) {
		return
	}
	def.Features.VMCoreInfo = &libvirtxml.DomainFeatureState{State: "on"}
	e.Added = append(e.Added, addedNotes)
}

// withoutDMA are the machines before QEMU 2.5, whose fw_cfg cannot write.
var withoutDMA = regexp.MustCompile(`-(0|1|2\.[0-4])(\.|$)`)

func addKey(def *libvirtxml.Domain, file string) {
	entry := libvirtxml.DomainSysInfoEntry{Name: KeyName, File: file}
	for i := range def.SysInfo {
		if fw := def.SysInfo[i].FWCfg; fw != nil {
			fw.Entry = append(fw.Entry, entry)
			return
		}
	}
	def.SysInfo = append(def.SysInfo, libvirtxml.DomainSysInfo{FWCfg: &libvirtxml.DomainSysInfoFWCfg{Entry: []libvirtxml.DomainSysInfoEntry{entry}}})
}

func removeKey(def *libvirtxml.Domain) {
	def.SysInfo = slices.DeleteFunc(def.SysInfo, func(s libvirtxml.DomainSysInfo) bool {
		if s.FWCfg == nil {
			return false
		}
		s.FWCfg.Entry = slices.DeleteFunc(s.FWCfg.Entry, func(e libvirtxml.DomainSysInfoEntry) bool { return e.Name == KeyName })
		return len(s.FWCfg.Entry) == 0
	})
}

// addVsock gives the domain libvirt's own vsock device; one that it has does.
func addVsock(def *libvirtxml.Domain, e *Enrolment) {
	if def.Devices.VSock != nil {
		return
	}
	def.Devices.VSock = &libvirtxml.DomainVSock{Model: "virtio", CID: &libvirtxml.DomainVSockCID{Auto: "yes"}}
	e.Added = append(e.Added, addedVsock)
}

// addPort gives the domain a virtio-serial port, whose socket QEMU serves.
func addPort(def *libvirtxml.Domain, e *Enrolment) error {
	if slices.ContainsFunc(def.Devices.Channels, ours) {
		return fmt.Errorf("it has a channel %s that enrolling did not add: `virsh edit` removes it", PortName)
	}
	e.Added = append(e.Added, addedPort)
	if !slices.ContainsFunc(def.Devices.Controllers, serialBus) {
		e.Added = append(e.Added, addedBus) // libvirt adds one with the first port
	}
	def.Devices.Channels = append(def.Devices.Channels, libvirtxml.DomainChannel{
		Source: &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{Mode: "bind", Path: e.Socket}},
		Target: &libvirtxml.DomainChannelTarget{VirtIO: &libvirtxml.DomainChannelTargetVirtIO{Name: PortName}},
	})
	return nil
}

func ours(c libvirtxml.DomainChannel) bool {
	return c.Target != nil && c.Target.VirtIO != nil && c.Target.VirtIO.Name == PortName
}

func serialBus(c libvirtxml.DomainController) bool { return c.Type == "virtio-serial" }

// removePort takes the port out, and the bus that came with it if nothing else
// is at it.
func removePort(def *libvirtxml.Domain, before *Enrolment) {
	if def.Devices == nil || !slices.Contains(before.Added, addedPort) {
		return
	}
	def.Devices.Channels = slices.DeleteFunc(def.Devices.Channels, ours)
	virtio := func(c libvirtxml.DomainChannel) bool { return c.Target != nil && c.Target.VirtIO != nil }
	console := func(c libvirtxml.DomainConsole) bool { return c.Target != nil && c.Target.Type == "virtio" }
	if slices.Contains(before.Added, addedBus) && !slices.ContainsFunc(def.Devices.Channels, virtio) && !slices.ContainsFunc(def.Devices.Consoles, console) {
		def.Devices.Controllers = slices.DeleteFunc(def.Devices.Controllers, serialBus)
	}
}

// addVhost gives the domain a vsock device that a process on the host serves.
// libvirt 9.0 knows none, so it stands on QEMU's command line, in a slot that
// libvirt has not taken.
func addVhost(def *libvirtxml.Domain, text string, e *Enrolment) error {
	if def.Devices.VSock != nil {
		return errors.New("it has a kernel vsock device, and a guest has but one; remove it or enroll with the transport vsock")
	}
	bus, err := bus(def)
	if err != nil {
		return err
	}
	slot, err := freeSlot(text)
	if err != nil {
		return err
	}
	if def.QEMUCommandline == nil {
		def.QEMUCommandline = &libvirtxml.DomainQEMUCommandline{}
	}
	for _, a := range def.QEMUCommandline.Args {
		if strings.Contains(a.Value, "vsock") {
			return fmt.Errorf("its QEMU command line has a vsock device already: %q", a.Value)
		}
	}
	for _, v := range []string{
		"-chardev", "socket,id=" + chardevID + ",path=" + strings.ReplaceAll(e.Vhost, ",", ",,"),
		"-device", fmt.Sprintf("vhost-user-vsock-pci,id=%s,chardev=%s,bus=%s,addr=0x%x", deviceID, chardevID, bus, slot),
	} {
		def.QEMUCommandline.Args = append(def.QEMUCommandline.Args, libvirtxml.DomainQEMUCommandlineArg{Value: v})
	}
	e.Added = append(e.Added, addedQEMU)
	shareMemory(def, e)
	return nil
}

// shareMemory backs the guest's memory by what another process can map.
func shareMemory(def *libvirtxml.Domain, e *Enrolment) {
	if def.MemoryBacking == nil {
		def.MemoryBacking = &libvirtxml.DomainMemoryBacking{}
	}
	b := def.MemoryBacking
	shared := b.MemoryAccess != nil && b.MemoryAccess.Mode == "shared"
	file := b.MemorySource != nil && (b.MemorySource.Type == "memfd" || b.MemorySource.Type == "file") || b.MemoryHugePages != nil
	if shared && file {
		return
	}
	if !file {
		b.MemorySource = &libvirtxml.DomainMemorySource{Type: "memfd"}
	}
	b.MemoryAccess = &libvirtxml.DomainMemoryAccess{Mode: "shared"}
	e.Added = append(e.Added, addedShared)
}

func removeVhost(def *libvirtxml.Domain) {
	if def.QEMUCommandline == nil {
		return
	}
	var kept []libvirtxml.DomainQEMUCommandlineArg
	args := def.QEMUCommandline.Args
	for i := 0; i < len(args); i++ {
		if i+1 < len(args) && oursAmong(args[i].Value, args[i+1].Value) {
			i++
			continue
		}
		kept = append(kept, args[i])
	}
	if def.QEMUCommandline.Args = kept; len(kept) == 0 && len(def.QEMUCommandline.Envs) == 0 {
		def.QEMUCommandline = nil
	}
}

func oursAmong(option, value string) bool {
	return option == "-chardev" && strings.HasPrefix(value, "socket,id="+chardevID+",") ||
		option == "-device" && strings.Contains(value, ",id="+deviceID+",")
}

func bus(def *libvirtxml.Domain) (string, error) {
	switch m := def.OS.Type.Machine; {
	case strings.Contains(m, "q35"), strings.HasPrefix(m, "virt"):
		return "pcie.0", nil
	case strings.Contains(m, "i440fx"), m == "pc":
		return "pci.0", nil
	default:
		return "", fmt.Errorf("machine %q: no place for a vsock device is known (q35, i440fx, virt)", m)
	}
}

// freeSlot finds a slot of the first PCI bus that no device has, from 0x10 on,
// which libvirt reaches last.
func freeSlot(text string) (int, error) {
	text = strings.ReplaceAll(text, `"`, `'`)
	for slot := 0x10; slot < 0x1f; slot++ {
		if !strings.Contains(text, fmt.Sprintf("bus='0x00' slot='0x%02x'", slot)) {
			return slot, nil
		}
	}
	return 0, errors.New("no free slot on its first PCI bus")
}
