package qcow2

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// descriptorFolder is where the kernel has a process's open files by their numbers.
const descriptorFolder = "/proc/self/fd/"

// inheritedFile is the path at which a process has the i-th of the files that it is given at its start.
func inheritedFile(i int) string { return descriptorFolder + strconv.Itoa(3+i) }

// Descriptor returns a path at which this package and the tools that it runs find a file that is open: that very file,
// whatever has its name by now. What was looked at through file is what is used. It can be given wherever an image's
// path is asked for, except as a backing file to be stored, and file must stay open until that call has returned.
// Errors have the name that the file has. Outside Linux it is the file's name.
func Descriptor(file *os.File) string {
	if !hasDescriptors {
		return file.Name()
	}
	return descriptorFolder + strconv.Itoa(int(file.Fd()))
}

// IsDescriptor says whether Descriptor has made the path. A target that is one is there already, and empty.
func IsDescriptor(path string) bool { _, ok := descriptor(path); return ok }

// descriptor returns the number in a path that Descriptor has made.
func descriptor(path string) (number int, ok bool) {
	text, ok := strings.CutPrefix(path, descriptorFolder)
	if !ok || !hasDescriptors {
		return 0, false
	}
	number, err := strconv.Atoi(text)
	return number, err == nil && number >= 0
}

// FileName returns a path as messages have it: of a Descriptor the name that its file has, or any other path as it is.
func FileName(path string) string {
	if _, ok := descriptor(path); !ok {
		return path
	}
	if name, err := os.Readlink(path); err == nil {
		return name
	}
	return path
}

// placeOf is the folder of a file, by which operations on storage that doesn't answer are told apart.
func placeOf(path string) string { return filepath.Dir(FileName(path)) }

// inArguments finds descriptors in arguments: as a whole one, or as a string in JSON.
var inArguments = regexp.MustCompile(`(^|")` + descriptorFolder + `(\d+)("|$)`)

// passed is a descriptor of this process that a program gets.
type passed struct {
	number int    // here
	there  int    // in the program
	name   string // of its file
}

// passOn has the program inherit the descriptors that c's arguments name, and names them by the numbers that they have
// there. The caller closes the files.
func (c *command) passOn() (all []passed, files []*os.File, err error) {
	c.files = slices.Clone(c.files)
	args := slices.Clone(c.args)
	for i, arg := range args {
		args[i] = inArguments.ReplaceAllStringFunc(arg, func(match string) string {
			part := inArguments.FindStringSubmatch(match)
			number, _ := strconv.Atoi(part[2])
			at := slices.IndexFunc(all, func(p passed) bool { return p.number == number })
			if at < 0 && err == nil {
				var file *os.File
				if file, err = duplicate(number); err == nil {
					at, files = len(all), append(files, file)
					all = append(all, passed{number, 3 + len(c.files), FileName(descriptorFolder + part[2])})
					c.files = append(c.files, file)
				}
			}
			if at < 0 {
				return match
			}
			return part[1] + descriptorFolder + strconv.Itoa(all[at].there) + part[3]
		})
	}
	c.args = args
	return all, files, err
}

// renamed puts the files' names in place of their numbers in what the program said.
func renamed(text string, all []passed) string {
	for _, p := range slices.Backward(all) { // 12 before 1
		text = strings.ReplaceAll(text, descriptorFolder+strconv.Itoa(p.there), p.name)
	}
	return text
}
