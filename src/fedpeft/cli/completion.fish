# Completion of fedpeft in fish:  fedpeft completion fish > ~/.config/fish/completions/fedpeft.fish

function __fedpeft_complete
    set -l typed (commandline -opc)
    set -l last (commandline -ct)
    for line in (fedpeft completion fish -- $typed[2..-1] "$last" 2>/dev/null)
        switch $line
            case ':files'
                set -l key (string match -r '^[^=]*=' -- "$last")
                for path in (__fish_complete_path (string replace -r '^[^=]*=' '' -- "$last"))
                    echo "$key$path"
                end
            case '*'
                echo $line
        end
    end
end

complete --no-files --command fedpeft --arguments '(__fedpeft_complete)'
