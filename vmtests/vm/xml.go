package vm

import (
	"bytes"
	"strings"
	"text/template"
)

// domainXML is a q35 machine with explicit places for the devices that libvirt
// does not know about: without them they collide with its root ports.
var domainXML = template.Must(template.New("domain").Parse(`<domain type='{{if .KVM}}kvm{{else}}qemu{{end}}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{{.Name}}</name>
  <memory unit='MiB'>{{.MemoryMiB}}</memory>
  <vcpu>{{.CPUs}}</vcpu>
{{- if .Chardev}}
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
{{- end}}
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{{.Dir}}/vmlinuz</kernel>
    <initrd>{{.Dir}}/initrd</initrd>
    <cmdline>{{.Cmdline}}</cmdline>
  </os>
  <features><acpi/></features>
{{- if .Counted}}
  <cpu mode='maximum'><feature policy='disable' name='erms'/><feature policy='disable' name='fsrm'/></cpu>
{{- else}}
  <cpu mode='{{if .KVM}}host-passthrough{{else}}maximum{{end}}'/>
{{- end}}
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{{.Dir}}/root.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='file'><source path='{{.Console}}'/><target port='0'/></serial>
    <console type='file'><source path='{{.Console}}'/><target type='serial' port='0'/></console>
{{- if .Root}}
    <serial type='unix'><source mode='bind' path='{{.Root}}'/><target port='1'/></serial>
{{- end}}
{{- if .KernelVsock}}
    <vsock model='virtio'><cid auto='yes'/></vsock>
{{- end}}
    <memballoon model='none'/>
  </devices>
{{- if .AppArmor}}
  <seclabel type='none' model='apparmor'/>
{{- end}}
  <qemu:commandline>
    <qemu:arg value='-netdev'/><qemu:arg value='user,id=net0,restrict=off,hostfwd=tcp:127.0.0.1:{{.Port}}-:80'/>
    <qemu:arg value='-device'/><qemu:arg value='virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56,romfile=,bus=pcie.0,addr=0x11'/>
{{- if .Counted}}
    <qemu:arg value='-icount'/><qemu:arg value='shift=0'/>
{{- end}}
{{- if .Chardev}}
    <qemu:arg value='-chardev'/><qemu:arg value='socket,id=vs0,path={{.Chardev}}'/>
    <qemu:arg value='-device'/><qemu:arg value='vhost-user-vsock-pci,chardev=vs0,bus=pcie.0,addr=0x10'/>
{{- end}}
  </qemu:commandline>
</domain>
`))

// xml is the domain as libvirt is to know it.
func (g *Guest) xml() string {
	// The kernel tells what its tasks do when it is asked by a key: see Report.
	words := append([]string{"console=ttyS0", "panic=-1", "sysrq_always_enabled", "lsm=landlock,lockdown,yama,integrity,bpf", "net.ifnames=0"}, g.spec.Cmdline...)
	root := ""
	if g.spec.Root {
		words, root = append(words, rootWord), g.rootSocket()
	}
	v := map[string]any{
		"Root": root,
		"KVM":  g.lab.Accelerator.Name == "kvm" && !g.spec.Counted, "Counted": g.spec.Counted, "Name": g.Name, "Dir": g.dir, "Console": g.console,
		"MemoryMiB": g.spec.MemoryMiB, "CPUs": g.spec.CPUs, "Cmdline": strings.Join(words, " "),
		"Port": g.Port, "AppArmor": g.lab.aa,
		"KernelVsock": g.lab.Vsock.Name == "vhost-vsock" && g.spec.Channel,
	}
	if g.channel != nil {
		v["Chardev"] = g.channel.Control
	}
	var b bytes.Buffer
	if err := domainXML.Execute(&b, v); err != nil {
		panic(err) // the template asks for something that is not in v
	}
	return b.String()
}
