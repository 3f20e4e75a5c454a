package main

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup/seal"
)

// recipientFlags name those for whom backups are sealed: public keys alone.
type recipientFlags struct {
	recipients []string
	files      []string
}

func (r *recipientFlags) add(cmd *cobra.Command, what string) {
	f := cmd.Flags()
	f.StringArrayVar(&r.recipients, "recipient", nil,
		what+" for who has the private key of this public `KEY`, age1...; may be repeated")
	f.StringArrayVar(&r.files, "recipients-file", nil,
		what+" for the public keys in this `FILE`, one a line; may be repeated")
}

// given says whether there is any: one that is empty, as of a variable that isn't set, asks for no plain backup.
func (r *recipientFlags) given() bool { return len(r.recipients)+len(r.files) > 0 }

// addTo reads the recipients.
func (r *recipientFlags) addTo(k *seal.Keys) error {
	for _, public := range r.recipients {
		if err := k.AddRecipient(public); err != nil {
			return usage("--recipient: %v", err)
		}
	}
	return eachOf(r.files, "--recipients-file", k.AddRecipients)
}

// identityFlags name files with private keys. What is in them is never printed.
type identityFlags struct{ files []string }

func (i *identityFlags) add(cmd *cobra.Command) {
	i.addTo(cmd, "open sealed backups with the private keys in this `FILE`, as age-keygen writes it; may be repeated")
}

func (i *identityFlags) addTo(cmd *cobra.Command, usage string) {
	cmd.Flags().StringArrayVar(&i.files, "identity", nil, usage)
}

// keys open nothing where no file is given: plain backups need none.
func (i *identityFlags) keys() (*seal.Keys, error) {
	k := seal.New()
	return k, eachOf(i.files, "--identity", k.AddIdentities)
}

// comparingFlags are by what contents are compared with sealed parents.
type comparingFlags struct {
	identity identityFlags
	index    string
}

func (c *comparingFlags) add(cmd *cobra.Command) {
	c.identity.addTo(cmd, "open sealed parents to compare with, with the private keys in this `FILE`; may be repeated")
	cmd.Flags().StringVar(&c.index, "index-key-file", "",
		"compare with sealed parents that aren't opened, by indexes under the key in this `FILE`: "+
			"64 hex digits, as of openssl rand -hex 32 (default $NASBACKUP_INDEX_KEY_FILE)")
}

// useFor gives a backup what it compares by.
func (a *app) useFor(c comparingFlags) (err error) {
	if len(c.identity.files) > 0 {
		if a.keys, err = c.identity.keys(); err != nil {
			return err
		}
	}
	file := cmp.Or(c.index, os.Getenv("NASBACKUP_INDEX_KEY_FILE"))
	if file == "" {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("--index-key-file: %w", err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err == nil {
		err = a.indexKey.UnmarshalBinary(key)
	}
	if err != nil { // which may have a part of it
		return usage("--index-key-file %s: it has to be 64 hexadecimal digits", file)
	}
	return nil
}

func eachOf(files []string, flag string, add func(io.Reader) error) error {
	for _, name := range files {
		if name == "" {
			return usage("%s is empty", flag)
		}
		f, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("%s: %w", flag, err)
		}
		err = add(f)
		_ = f.Close() // it was only read
		if err != nil {
			return usage("%s %s: %v", flag, name, err)
		}
	}
	return nil
}
