package qcow2

import "fmt"

// Format is the name of an image format as QEMU spells it. The zero value means
// FormatQcow2 in every option of this package.
type Format string

const (
	// FormatQcow2 is QEMU's own format, the only one with bitmaps.
	FormatQcow2 Format = "qcow2"
	// FormatRaw is the plain content of the disk.
	FormatRaw Format = "raw"
	// FormatAuto lets QEMU guess the format from the content. Dangerous on a raw
	// disk, whose guest can write any header into it; accepted only for images
	// that are read, and never a default.
	FormatAuto Format = "auto"
)

// orDefault returns f, or FormatQcow2 when f is empty.
func (f Format) orDefault() Format {
	if f == "" {
		return FormatQcow2
	}
	return f
}

// validate refuses anything that is not a plain driver name.
func (f Format) validate() error {
	for _, c := range f {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return fmt.Errorf("%w: image format %q", ErrInvalidOption, string(f))
		}
	}
	return nil
}

// explicit is validate for places where guessing is not allowed.
func (f Format) explicit() error {
	if f == FormatAuto {
		return fmt.Errorf("%w: image format %q is not allowed here, name the format", ErrInvalidOption, string(f))
	}
	return f.validate()
}

// formatArgs returns the option that names the format of an image to be read,
// or nothing for FormatAuto.
func formatArgs(option string, f Format) ([]string, error) {
	if f == FormatAuto {
		return nil, nil
	}
	if err := f.validate(); err != nil {
		return nil, err
	}
	return []string{option, string(f.orDefault())}, nil
}
